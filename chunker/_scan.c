/* The kernel: every cut candidate of a buffer, in one pass, without the GIL.
 *
 * What it computes.  Bytes are coefficients of a polynomial over GF(2).  The digest of a
 * position p is the polynomial of the 64 bytes before it, reduced modulo an irreducible
 * polynomial P of degree 53:
 *
 *     digest(p) = sum(byte[p-1-j] * x^(8j), j = 0..63)  mod P
 *
 * and p is a candidate if digest(p) & mask is zero (restic-format.md section 10).  Since only
 * the last 64 bytes count, the digest rolls: multiply by x^8, add the byte that enters, take
 * away the byte that leaves,
 *
 *     digest' = ((digest << 8) | entering) ^ mod[digest >> 45] ^ gone[leaving]
 *
 * where mod[b] = (b * x^53 mod P) | b << 53 brings bits 53..60 back below 53 and
 * gone[b] = b * x^512 mod P is what a byte has grown to when it leaves.
 *
 * Why lanes.  One digest waits for a table look-up on every byte, and that wait is all the
 * time there is: the processor idles in between.  But any 64 bytes start a digest afresh, so a
 * block is cut into LANES stretches, each primes its own window from the 64 bytes before it,
 * and the look-ups of one lane fill the waits of the others.
 *
 * The rule that it guards: chunker/reference.py says the same in Python and is right where
 * they differ.  Candidates come back as runs because a run of zeros makes every position one:
 * eight mebibytes of zeros are one run of 16 bytes.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW = 64,
    DEGREE = 53,
    TABLE_BYTES = 256 * sizeof(uint64_t),
    LANES = 8, /* measured: 3 lanes 1.5 GB/s, 4: 1.8, 6: 2.1, 8: 2.3 (Zen 5, one core) */
    /* An odd number of cache lines, so that the lanes do not fight for one cache set. */
    LONG_STRIDE = 65 * 64,
    SHORT_STRIDE = 4 * 64, /* for what is left below LANES * LONG_STRIDE */
    LONGEST_STRIDE = LONG_STRIDE,
    FIRST_RUNS = 64, /* on the stack: random data has one candidate in a mebibyte */
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

typedef struct {
    uint64_t first, last; /* positions, both included */
} Run;

typedef struct {
    Run *items;
    size_t used, room;
    bool no_memory;
    Run nearby[FIRST_RUNS];
} Runs;

typedef struct {
    uint64_t mod[256];
    uint64_t gone[256];
    uint64_t mask;
} Rolling;

/* ---- runs ------------------------------------------------------------------------------ */

static void
runs_start(Runs *runs)
{
    runs->items = runs->nearby;
    runs->used = 0;
    runs->room = FIRST_RUNS;
    runs->no_memory = false;
}

static void
runs_free(Runs *runs)
{
    if (runs->items != runs->nearby) {
        free(runs->items);
    }
}

static bool
runs_grow(Runs *runs)
{
    if (runs->room > (size_t)PY_SSIZE_T_MAX / 2 / sizeof(Run)) {
        return false;
    }
    bool on_stack = runs->items == runs->nearby;
    Run *larger = realloc(on_stack ? NULL : runs->items, 2 * runs->room * sizeof(Run));
    if (larger == NULL) {
        return false;
    }
    if (on_stack) {
        memcpy(larger, runs->nearby, sizeof(runs->nearby));
    }
    runs->items = larger;
    runs->room *= 2;
    return true;
}

/* Positions arrive in rising order. */
static void
runs_add(Runs *runs, uint64_t position)
{
    if (runs->used > 0 && runs->items[runs->used - 1].last + 1 == position) {
        runs->items[runs->used - 1].last = position;
        return;
    }
    if (runs->no_memory || (runs->used == runs->room && !runs_grow(runs))) {
        runs->no_memory = true;
        return;
    }
    runs->items[runs->used++] = (Run){position, position};
}

/* ---- the scan -------------------------------------------------------------------------- */

ALWAYS_INLINE uint64_t
append(const Rolling *rolling, uint64_t digest, uint8_t entering)
{
    return ((digest << 8) | entering) ^ rolling->mod[digest >> (DEGREE - 8)];
}

/* Add the candidates that bytes from .. to-1 complete; 64 bytes before `from` are readable.
 * `offset` is the position of bytes[0]. */
static void
scan_one_lane(const Rolling *rolling, const uint8_t *bytes, size_t from, size_t to,
              uint64_t offset, Runs *runs)
{
    uint64_t digest = 0;
    for (size_t i = from - WINDOW; i < from; i++) {
        digest = append(rolling, digest, bytes[i]);
    }
    for (size_t i = from; i < to; i++) {
        digest = append(rolling, digest, bytes[i]) ^ rolling->gone[bytes[i - WINDOW]];
        if (UNLIKELY((digest & rolling->mask) == 0)) {
            runs_add(runs, offset + i + 1);
        }
    }
}

/* The same for LANES * stride bytes; `stride` is a constant where this is inlined, so that
 * one pointer serves all lanes.  Hits of the lanes come interleaved and are sorted by way of
 * one bit a position, which stays untouched in a block without any. */
ALWAYS_INLINE void
scan_lanes(const Rolling *rolling, const uint8_t *block, const size_t stride, uint64_t offset,
           Runs *runs)
{
    uint64_t hits[LANES][(LONGEST_STRIDE + 63) / 64];
    bool any = false;
    uint64_t digest[LANES] = {0};
    const uint8_t *before = block - WINDOW;
    for (size_t i = 0; i < WINDOW; i++) {
#pragma GCC unroll 8
        for (size_t lane = 0; lane < LANES; lane++) {
            digest[lane] = append(rolling, digest[lane], before[lane * stride + i]);
        }
    }
    for (size_t i = 0; i < stride; i++) {
#pragma GCC unroll 8
        for (size_t lane = 0; lane < LANES; lane++) {
            const uint8_t *entering = block + lane * stride + i;
            digest[lane] = append(rolling, digest[lane], *entering) ^
                           rolling->gone[*(entering - WINDOW)];
            if (UNLIKELY((digest[lane] & rolling->mask) == 0)) {
                if (!any) {
                    memset(hits, 0, sizeof(hits));
                    any = true;
                }
                hits[lane][i / 64] |= UINT64_C(1) << (i % 64);
            }
        }
    }
    if (!any) {
        return;
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        for (size_t word = 0; word < (stride + 63) / 64; word++) {
            for (uint64_t bits = hits[lane][word]; bits != 0; bits &= bits - 1) {
                size_t i = word * 64 + (size_t)__builtin_ctzll(bits);
                runs_add(runs, offset + lane * stride + i + 1);
            }
        }
    }
}

/* The first 64 bytes have a window that reaches into the history: roll over a copy of both.
 * Only windows that are complete count. */
static void
scan_head(const Rolling *rolling, const uint8_t *data, size_t length, const uint8_t *history,
          size_t history_length, Runs *runs)
{
    uint8_t joined[2 * WINDOW];
    size_t before = history_length < WINDOW - 1 ? history_length : WINDOW - 1;
    size_t head = length < WINDOW ? length : WINDOW;
    size_t filled = before + head;
    if (before > 0) {
        memcpy(joined, history + history_length - before, before);
    }
    if (head > 0) {
        memcpy(joined + before, data, head);
    }
    if (filled < WINDOW) {
        return;
    }
    uint64_t digest = 0;
    for (size_t i = 0; i < filled; i++) {
        digest = append(rolling, digest, joined[i]);
        if (i >= WINDOW) {
            digest ^= rolling->gone[joined[i - WINDOW]];
        }
        if (i >= WINDOW - 1 && (digest & rolling->mask) == 0) {
            runs_add(runs, i + 1 - before);
        }
    }
}

static void
scan_all(const Rolling *rolling, const Py_buffer *data, const Py_buffer *history, Runs *runs)
{
    const uint8_t *bytes = data->buf;
    size_t length = (size_t)data->len;
    scan_head(rolling, bytes, length, history->buf, (size_t)history->len, runs);
    size_t at = WINDOW;
    for (; at < length && length - at >= LANES * LONG_STRIDE; at += LANES * LONG_STRIDE) {
        scan_lanes(rolling, bytes + at, LONG_STRIDE, at, runs);
    }
    for (; at < length && length - at >= LANES * SHORT_STRIDE; at += LANES * SHORT_STRIDE) {
        scan_lanes(rolling, bytes + at, SHORT_STRIDE, at, runs);
    }
    if (at < length) {
        scan_one_lane(rolling, bytes, at, length, 0, runs);
    }
}

/* ---- Python ---------------------------------------------------------------------------- */

/* Check and load the tables.  The checks are what keeps `digest >> 45` below 256 for ever:
 * out is below 2^53, and mod[b] carries b in bits 53..60 so that it cancels them. */
static bool
rolling_load(Rolling *rolling, const Py_buffer *out, const Py_buffer *mod, uint64_t mask)
{
    if (out->len != TABLE_BYTES || mod->len != TABLE_BYTES) {
        PyErr_Format(PyExc_ValueError,
                     "out and mod must have 256 64-bit entries each (%d bytes), not %zd and "
                     "%zd bytes; take them from chunker.rabin.Tables",
                     (int)TABLE_BYTES, out->len, mod->len);
        return false;
    }
    if (mask == 0 || mask >> DEGREE != 0) {
        PyErr_SetString(PyExc_ValueError, "mask must be between 1 and 2**53 - 1");
        return false;
    }
    memcpy(rolling->gone, out->buf, TABLE_BYTES);
    memcpy(rolling->mod, mod->buf, TABLE_BYTES);
    rolling->mask = mask;
    for (uint64_t b = 0; b < 256; b++) {
        if (rolling->gone[b] >> DEGREE != 0 || rolling->mod[b] >> DEGREE != b) {
            PyErr_SetString(PyExc_ValueError,
                            "out and mod are not the tables of a polynomial of degree 53; "
                            "take them from chunker.rabin.Tables");
            return false;
        }
    }
    /* out[b] is b * x^504, as the format has it; the byte leaves one step later here. */
    for (size_t b = 0; b < 256; b++) {
        rolling->gone[b] = append(rolling, rolling->gone[b], 0);
    }
    return true;
}

static bool
mask_value(PyObject *object, uint64_t *mask)
{
    *mask = PyLong_AsUnsignedLongLong(object);
    if (*mask == UINT64_MAX && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_SetString(PyExc_ValueError, "mask must be between 1 and 2**53 - 1");
        }
        return false;
    }
    return true;
}

PyDoc_STRVAR(scan_doc,
"scan(data, history, out, mod, mask, /)\n--\n\n"
"Return every cut candidate of data as runs of positions.\n\n"
"See chunker.reference.scan, which is the specification. The GIL is released, so the\n"
"buffers must not be written to by other threads meanwhile.");

static PyObject *
scan(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data, history, out, mod;
    PyObject *mask_object;
    if (!PyArg_ParseTuple(args, "y*y*y*y*O:scan", &data, &history, &out, &mod, &mask_object)) {
        return NULL;
    }
    PyObject *result = NULL;
    Rolling rolling;
    uint64_t mask;
    if (mask_value(mask_object, &mask) && rolling_load(&rolling, &out, &mod, mask)) {
        Runs runs;
        runs_start(&runs);
        Py_BEGIN_ALLOW_THREADS
        scan_all(&rolling, &data, &history, &runs);
        Py_END_ALLOW_THREADS
        if (runs.no_memory) {
            PyErr_NoMemory();
        } else {
            result = PyBytes_FromStringAndSize((const char *)runs.items,
                                               (Py_ssize_t)(runs.used * sizeof(Run)));
        }
        runs_free(&runs);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&history);
    PyBuffer_Release(&out);
    PyBuffer_Release(&mod);
    return result;
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, scan_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    return PyModule_AddIntConstant(module, "LANES", LANES);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "chunker._scan",
    .m_doc = "The native kernel: every cut candidate of a buffer.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModuleDef_Init(&definition);
}
