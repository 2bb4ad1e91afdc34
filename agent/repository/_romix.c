/* ROMix, the memory-hard step of scrypt (RFC 7914, sections 3 to 5), on one block, without the GIL.
 *
 * OpenSSL does the p blocks of a key one after the other, a word at a time; they do not depend on
 * each other, and Salsa20/8 works on four words at once. agent/repository/scrypt.py has the rest, and
 * the words of every 64 bytes are held here in the order of the diagonals of Salsa's matrix, so that
 * both halves of a double round are the same steps. OpenSSL's own is the twin in the tests.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef uint32_t row_t __attribute__((vector_size(16)));

typedef struct {
    row_t rows[4];
} words_t; /* 64 bytes */

enum { MOST_N = 1 << 24, MOST_R = 1 << 16, HUGE_PAGE = 2 << 20 };

#if defined(__clang__) || __GNUC__ >= 12
#define TURNED(v, a, b, c, d) __builtin_shufflevector(v, v, a, b, c, d)
#else
#define TURNED(v, a, b, c, d) __builtin_shuffle(v, (row_t){a, b, c, d})
#endif
#define ROTATED(v, n) (((v) << (n)) | ((v) >> (32 - (n))))

/* One half of a double round: down the columns, or with b and d exchanged along the rows. */
#define HALF_ROUND(a, b, c, d)   \
    do {                         \
        b ^= ROTATED(a + d, 7);  \
        c ^= ROTATED(b + a, 9);  \
        d ^= ROTATED(c + b, 13); \
        a ^= ROTATED(d + c, 18); \
    } while (0)

/* x = Salsa20/8(x ^ other) */
static inline void mix(words_t *x, const words_t *other)
{
    row_t a = x->rows[0] ^ other->rows[0], b = x->rows[1] ^ other->rows[1];
    row_t c = x->rows[2] ^ other->rows[2], d = x->rows[3] ^ other->rows[3];
    const row_t a0 = a, b0 = b, c0 = c, d0 = d;
    for (int round = 0; round < 8; round += 2) {
        HALF_ROUND(a, b, c, d);
        b = TURNED(b, 3, 0, 1, 2);
        c = TURNED(c, 2, 3, 0, 1);
        d = TURNED(d, 1, 2, 3, 0);
        HALF_ROUND(a, d, c, b);
        b = TURNED(b, 1, 2, 3, 0);
        c = TURNED(c, 2, 3, 0, 1);
        d = TURNED(d, 3, 0, 1, 2);
    }
    x->rows[0] = a + a0;
    x->rows[1] = b + b0;
    x->rows[2] = c + c0;
    x->rows[3] = d + d0;
}

/* out = BlockMix(in ^ other), of 2 r words_t each; other may be NULL */
static inline void mix_block(words_t *out, const words_t *in, const words_t *other, size_t r)
{
    words_t x = in[2 * r - 1];
    if (other != NULL)
        for (int row = 0; row < 4; row++)
            x.rows[row] ^= other[2 * r - 1].rows[row];
    for (size_t i = 0; i < 2 * r; i++) {
        words_t next = in[i];
        if (other != NULL)
            for (int row = 0; row < 4; row++)
                next.rows[row] ^= other[i].rows[row];
        mix(&x, &next);
        out[i / 2 + (i & 1) * r] = x;
    }
}

/* Bring the words of a block into the order of the diagonals (to), or back. */
static void turn(unsigned char *block, words_t *words, size_t r, int to)
{
    for (size_t i = 0; i < 2 * r; i++)
        for (unsigned place = 0; place < 16; place++) {
            unsigned char *at = block + 64 * i + 4 * (place * 5 % 16);
            row_t *row = &words[i].rows[place / 4];
            if (to) {
                (*row)[place % 4] = (uint32_t)at[0] | (uint32_t)at[1] << 8 |
                                    (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
            } else {
                uint32_t word = (*row)[place % 4];
                for (int byte = 0; byte < 4; byte++)
                    at[byte] = (unsigned char)(word >> (8 * byte));
            }
        }
}

/* n is even: it is a power of two and more than one. */
static void romix(unsigned char *block, words_t *memory, words_t *x, words_t *y, size_t n, size_t r)
{
    turn(block, memory, r, 1);
    for (size_t i = 1; i < n; i++)
        mix_block(memory + 2 * r * i, memory + 2 * r * (i - 1), NULL, r);
    mix_block(x, memory + 2 * r * (n - 1), NULL, r);
    for (size_t i = 0; i < n; i += 2) {
        mix_block(y, x, memory + 2 * r * (x[2 * r - 1].rows[0][0] & (n - 1)), r);
        mix_block(x, y, memory + 2 * r * (y[2 * r - 1].rows[0][0] & (n - 1)), r);
    }
    turn(block, x, r, 0);
}

PyDoc_STRVAR(romix_doc,
"romix(block, n)\n\n"
"Replace a block of 128 r bytes by its ROMix of n steps, which takes 128 n r bytes of memory.\n"
"Raises ValueError for another size or an n that is no power of two, and MemoryError.");

static PyObject *romix_object(PyObject *self, PyObject *args)
{
    Py_buffer block;
    unsigned long long n;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*K:romix", &block, &n))
        return NULL;
    size_t r = (size_t)block.len / 128;
    int fits = block.len % 128 == 0 && r > 0 && r <= MOST_R && n > 1 && n <= MOST_N &&
               (n & (n - 1)) == 0;
    void *memory = NULL;
    size_t size = 128 * r * ((size_t)n + 2);
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "no such block, or no such number of steps");
    else if (posix_memalign(&memory, HUGE_PAGE, size) != 0)
        PyErr_NoMemory();
    else {
        words_t *words = memory;
#ifdef MADV_HUGEPAGE
        madvise(memory, size, MADV_HUGEPAGE); /* it is read at random: a third less time */
#endif
        Py_BEGIN_ALLOW_THREADS
        romix(block.buf, words, words + 2 * r * n, words + 2 * r * (n + 1), (size_t)n, r);
        memset(memory, 0, 128 * r); /* what the rest was made of */
        free(memory);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&block);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"romix", romix_object, METH_VARARGS, romix_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_romix", "The memory-hard step of scrypt.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__romix(void)
{
    return PyModule_Create(&module);
}
