/*
 * qemuglue's TCG plugin: one line of QEMU's log for each guest-CPU memory access.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The lines go through qemu_plugin_outs(), so with `-d plugin -D FILE` they share one ordered
 * file with the trace lines, and a line follows the trace lines of its own access (QEMU calls a
 * memory callback after the access is done).
 *
 *   qg_plugin api 4 target 'x86_64'
 *   qg_access cpu 0 insn 0xfffea load size 4 order little vaddr 0xfed00000 paddr 0xfed00000
 *             io 1 value 0x8086a201 name 'hpet'                              (one line, really)
 *   qg_limit 1000
 *   qg_end seen 5000 printed 1000
 *
 * records.py documents the fields and reads them.
 *
 * One object for every QEMU. It declares the few functions it needs by itself (no QEMU header, no
 * glib) and calls no libc: an object that bound itself to the symbol versions of a new host libc
 * would not load into an older QEMU that runs on its own libraries. Two things differ between
 * QEMU's plugin API versions and are chosen when the object is loaded:
 *
 *   - the version the object must declare, read by QEMU before it calls anything: told from the
 *     functions QEMU has (weak symbols), see declare_version();
 *   - the form of the callbacks: API 7 gives every one a user pointer and no plugin id; told from
 *     the version QEMU passes to qemu_plugin_install().
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define WEAK __attribute__((weak))

/* The instruction's address travels in a user pointer. */
_Static_assert(sizeof(void *) == sizeof(uint64_t), "a 64-bit host is needed");

/* QEMU 11.0 (API 6) and 11.1 (API 7) offer the same functions, so no symbol tells them apart;
 * build.py compiles with 6 for an 11.0. */
#ifndef QG_API_WITH_SET_PC
#define QG_API_WITH_SET_PC 7
#endif

/* ---- QEMU's plugin API, as much of it as is used ------------------------------------------ */

typedef uint64_t PluginId;
typedef uint32_t MemInfo;
typedef struct Block Block;
typedef struct Instruction Instruction;
typedef struct PhysicalAddress PhysicalAddress;

typedef struct {
    const char *target_name;
    struct {
        int min;
        int cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus;
        int max_vcpus;
    } system;
} Info;

enum { VALUE_U8, VALUE_U16, VALUE_U32, VALUE_U64, VALUE_U128 };

/* Returned by value: the layout must be QEMU's, 24 bytes. The numbers are in host order. */
typedef struct {
    int type;
    union {
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
        struct {
            uint64_t low;
            uint64_t high;
        } u128;
    } data;
} Value;
_Static_assert(sizeof(Value) == 24, "the value structure of qemu_plugin_mem_get_value");

enum { CALLBACK_USES_NO_REGISTERS = 0 };
enum { LOADS_AND_STORES = 3 };

typedef void (*AnyCallback)(void);
typedef void (*MemoryCallback)(unsigned cpu, MemInfo info, uint64_t vaddr, void *user);

/* Up to API 6 the translation callback is registered with two arguments and called with (id, tb);
 * from API 7 on with three and (tb, user). Passing an argument too many is harmless in the calling
 * conventions of every host QEMU runs on, so one declaration serves both. */
extern void qemu_plugin_register_vcpu_tb_trans_cb(PluginId id, AnyCallback callback, void *user);
/* The same number of arguments in all versions; the callback gets (id, user), from API 7 (user). */
extern void qemu_plugin_register_atexit_cb(PluginId id, AnyCallback callback, void *user);
extern void qemu_plugin_register_vcpu_mem_cb(Instruction *insn, MemoryCallback callback, int flags,
                                             int which, void *user);
extern size_t qemu_plugin_tb_n_insns(const Block *tb);
extern Instruction *qemu_plugin_tb_get_insn(const Block *tb, size_t index);
extern uint64_t qemu_plugin_insn_vaddr(const Instruction *insn);
extern unsigned qemu_plugin_mem_size_shift(MemInfo info);
extern bool qemu_plugin_mem_is_store(MemInfo info);
extern bool qemu_plugin_mem_is_big_endian(MemInfo info);
extern PhysicalAddress *qemu_plugin_get_hwaddr(MemInfo info, uint64_t vaddr);
extern bool qemu_plugin_hwaddr_is_io(const PhysicalAddress *address);
extern uint64_t qemu_plugin_hwaddr_phys_addr(const PhysicalAddress *address);
extern const char *qemu_plugin_hwaddr_device_name(const PhysicalAddress *address);
extern void qemu_plugin_outs(const char *text);

extern Value qemu_plugin_mem_get_value(MemInfo info) WEAK; /* in QEMUs with API 4 (9.2) and later */
extern int qemu_plugin_num_vcpus(void) WEAK;               /* API 2 */
extern void qemu_plugin_read_memory_hwaddr(void) WEAK;     /* API 5; only looked for */
extern void qemu_plugin_set_pc(void) WEAK;                 /* API 6; only looked for */

EXPORT int qemu_plugin_version = 1;

__attribute__((constructor)) static void declare_version(void)
{
    if (qemu_plugin_set_pc) {
        qemu_plugin_version = QG_API_WITH_SET_PC;
    } else if (qemu_plugin_read_memory_hwaddr) {
        qemu_plugin_version = 5;
    } else if (qemu_plugin_mem_get_value) {
        qemu_plugin_version = 4;
    } else if (qemu_plugin_num_vcpus) {
        qemu_plugin_version = 2;
    } else {
        qemu_plugin_version = 1;
    }
}

/* ---- options, fixed at load --------------------------------------------------------------- */

static bool only_io;
static uint64_t range_first;
static uint64_t range_last = UINT64_MAX;
static uint64_t limit; /* 0: none */

/* vCPU threads may run at the same time. */
static uint64_t seen;

static const char *after_prefix(const char *text, const char *prefix)
{
    while (*prefix) {
        if (*text++ != *prefix++) {
            return NULL;
        }
    }
    return text;
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return 16;
}

/* Decimal, or hexadecimal after 0x. Gives the first character behind, NULL where no number that
 * fits 64 bits stands. */
static const char *read_number(const char *text, uint64_t *number)
{
    const char *hex = after_prefix(text, "0x");
    unsigned base = hex ? 16 : 10;
    const char *at = hex ? hex : text;
    const char *start = at;
    uint64_t sum = 0;

    for (; (unsigned)digit_value(*at) < base; at++) {
        unsigned digit = (unsigned)digit_value(*at);
        if (sum > (UINT64_MAX - digit) / base) {
            return NULL;
        }
        sum = sum * base + digit;
    }
    *number = sum;
    return at == start ? NULL : at;
}

static bool read_option(const char *option)
{
    const char *value;

    if ((value = after_prefix(option, "io="))) {
        only_io = value[0] == 'o' && value[1] == 'n' && !value[2];
        return only_io || (value[0] == 'o' && value[1] == 'f' && value[2] == 'f' && !value[3]);
    }
    if ((value = after_prefix(option, "range="))) {
        value = read_number(value, &range_first);
        if (!value || *value != '-') {
            return false;
        }
        value = read_number(value + 1, &range_last);
        return value && !*value && range_first <= range_last;
    }
    if ((value = after_prefix(option, "limit="))) {
        value = read_number(value, &limit);
        return value && !*value;
    }
    return false;
}

/* ---- one line of text --------------------------------------------------------------------- */

enum {
    LINE_SIZE = 1024,
    /* Four characters each at worst; the other fields stay below 300. */
    NAME_LIMIT = 160,
};

typedef struct {
    unsigned length;
    char text[LINE_SIZE];
} Line;

static void put(Line *line, const char *text)
{
    while (*text && line->length < LINE_SIZE - 1) {
        line->text[line->length++] = *text++;
    }
    line->text[line->length] = '\0';
}

/* The text is not cleared: that would be most of the work of a line. */
static void start(Line *line, const char *text)
{
    line->length = 0;
    put(line, text);
}

static void put_char(Line *line, char c)
{
    char text[2] = {c, '\0'};

    put(line, text);
}

/* At least `digits` digits, as many as needed. */
static void put_hex(Line *line, uint64_t number, unsigned digits)
{
    unsigned needed = 1;

    while (needed < 16 && number >> (4 * needed)) {
        needed++;
    }
    needed = needed < digits ? digits : needed;
    while (needed--) {
        put_char(line, "0123456789abcdef"[(number >> (4 * needed)) & 15]);
    }
}

static void put_decimal(Line *line, uint64_t number)
{
    char digits[21];
    unsigned at = sizeof(digits) - 1;

    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    put(line, digits + at);
}

/* Quotes, backslashes and what is not printable ASCII become \xNN, so that no region name can
 * end its field, its line, or look like another record. */
static void put_name(Line *line, const char *name)
{
    put(line, "'");
    for (unsigned i = 0; name[i] && i < NAME_LIMIT; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < ' ' || c > '~' || c == '\'' || c == '\\') {
            put(line, "\\x");
            put_hex(line, c, 2);
        } else {
            put_char(line, (char)c);
        }
    }
    put(line, "'");
}

static void put_value(Line *line, MemInfo info)
{
    Value value;

    if (!qemu_plugin_mem_get_value) {
        put(line, " value none");
        return;
    }
    value = qemu_plugin_mem_get_value(info);
    put(line, " value 0x");
    switch (value.type) {
    case VALUE_U8:
        put_hex(line, value.data.u8, 1);
        break;
    case VALUE_U16:
        put_hex(line, value.data.u16, 1);
        break;
    case VALUE_U32:
        put_hex(line, value.data.u32, 1);
        break;
    case VALUE_U64:
        put_hex(line, value.data.u64, 1);
        break;
    default:
        put_hex(line, value.data.u128.high, 1);
        put_hex(line, value.data.u128.low, 16);
        break;
    }
}

/* ---- callbacks ---------------------------------------------------------------------------- */

/* True where the record is to be printed; says once that the limit was reached. */
static bool count_record(void)
{
    Line line;
    uint64_t before = __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED);

    if (!limit || before < limit) {
        return true;
    }
    if (before == limit) {
        start(&line, "qg_limit ");
        put_decimal(&line, limit);
        put(&line, "\n");
        qemu_plugin_outs(line.text);
    }
    return false;
}

static void on_access(unsigned cpu, MemInfo info, uint64_t vaddr, void *user)
{
    Line line;
    unsigned size = 1u << (qemu_plugin_mem_size_shift(info) & 7);
    PhysicalAddress *physical;
    const char *name;
    bool io;

    /* Subtractions, not sums: an access at the top of the address space must not wrap. */
    if (vaddr > range_last || (vaddr < range_first && range_first - vaddr >= size)) {
        return;
    }
    physical = qemu_plugin_get_hwaddr(info, vaddr);
    io = physical && qemu_plugin_hwaddr_is_io(physical);
    /* An access of unknown kind (no physical address) stays in: a witness says what it misses. */
    if (only_io && physical && !io) {
        return;
    }
    if (!count_record()) {
        return;
    }
    start(&line, "qg_access cpu ");
    put_decimal(&line, cpu);
    put(&line, " insn 0x");
    put_hex(&line, (uint64_t)(uintptr_t)user, 1);
    put(&line, qemu_plugin_mem_is_store(info) ? " store size " : " load size ");
    put_decimal(&line, size);
    put(&line, qemu_plugin_mem_is_big_endian(info) ? " order big" : " order little");
    put(&line, " vaddr 0x");
    put_hex(&line, vaddr, 1);
    if (physical) {
        put(&line, " paddr 0x");
        put_hex(&line, qemu_plugin_hwaddr_phys_addr(physical), 1);
        put(&line, io ? " io 1" : " io 0");
    } else {
        put(&line, " paddr none io none");
    }
    put_value(&line, info);
    put(&line, " name ");
    name = physical ? qemu_plugin_hwaddr_device_name(physical) : NULL;
    if (name) {
        put_name(&line, name);
    } else {
        put(&line, "none");
    }
    put(&line, "\n");
    qemu_plugin_outs(line.text);
}

static void on_translation(const Block *tb)
{
    size_t count = qemu_plugin_tb_n_insns(tb);

    for (size_t i = 0; i < count; i++) {
        Instruction *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t address = qemu_plugin_insn_vaddr(insn);

        qemu_plugin_register_vcpu_mem_cb(insn, on_access, CALLBACK_USES_NO_REGISTERS,
                                         LOADS_AND_STORES, (void *)(uintptr_t)address);
    }
}

static void on_translation_to_api_6(PluginId id, const Block *tb)
{
    (void)id;
    on_translation(tb);
}

static void on_translation_from_api_7(const Block *tb, void *user)
{
    (void)user;
    on_translation(tb);
}

/* Takes no argument, so it serves both forms. */
static void on_exit(void)
{
    Line line;
    uint64_t all = __atomic_load_n(&seen, __ATOMIC_RELAXED);

    start(&line, "qg_end seen ");
    put_decimal(&line, all);
    put(&line, " printed ");
    put_decimal(&line, limit && all > limit ? limit : all);
    put(&line, "\n");
    qemu_plugin_outs(line.text);
}

EXPORT int qemu_plugin_install(PluginId id, const Info *info, int argc, char **argv)
{
    Line line;

    for (int i = 0; i < argc; i++) {
        if (!read_option(argv[i])) {
            return -1;
        }
    }
    start(&line, "qg_plugin api ");
    put_decimal(&line, (uint64_t)info->version.cur);
    put(&line, " target ");
    put_name(&line, info->target_name);
    put(&line, "\n");
    qemu_plugin_outs(line.text);
    qemu_plugin_register_vcpu_tb_trans_cb(
        id,
        info->version.cur >= 7 ? (AnyCallback)on_translation_from_api_7
                               : (AnyCallback)on_translation_to_api_6,
        NULL);
    qemu_plugin_register_atexit_cb(id, (AnyCallback)on_exit, NULL);
    return 0;
}
