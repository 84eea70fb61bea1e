"""What people and machines read: terminal, JSON, JUnit, Markdown. Nothing here runs QEMU."""
