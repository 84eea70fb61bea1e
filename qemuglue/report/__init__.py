"""What people and machines read: terminal, JSON, JUnit. Nothing here runs QEMU."""
