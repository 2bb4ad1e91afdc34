/* CRC-32C and CRC-64/NVME of a buffer, without the GIL.
 *
 * Two of the checksums that S3 knows are in no library that the process has loaded, and a loop in
 * Python would take seconds for a pack. Both are reflected, start as all ones and end inverted, so
 * one loop serves them: eight bytes a step, through eight tables made once (the method is called
 * slicing by 8). tests/storage/crc_twin.py is the same in Python, a bit at a time.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef uint64_t tables_t[8][256];

static tables_t crc32c_tables, crc64nvme_tables;

static void fill(tables_t tables, uint64_t polynomial)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t state = byte;
        for (int bit = 0; bit < 8; bit++)
            state = state & 1 ? (state >> 1) ^ polynomial : state >> 1;
        tables[0][byte] = state;
    }
    for (int ahead = 1; ahead < 8; ahead++)
        for (unsigned byte = 0; byte < 256; byte++) {
            uint64_t before = tables[ahead - 1][byte];
            tables[ahead][byte] = (before >> 8) ^ tables[0][before & 0xff];
        }
}

static uint64_t run(tables_t tables, uint64_t state, const unsigned char *at, Py_ssize_t left)
{
    for (; left >= 8; left -= 8, at += 8) {
        uint64_t word = 0; /* least significant byte first, on any machine */
        for (int i = 0; i < 8; i++)
            word |= (uint64_t)at[i] << (8 * i);
        word ^= state;
        state = 0;
        for (int i = 0; i < 8; i++)
            state ^= tables[7 - i][(word >> (8 * i)) & 0xff];
    }
    for (; left > 0; left--, at++)
        state = (state >> 8) ^ tables[0][(state ^ *at) & 0xff];
    return state;
}

static PyObject *checksum(PyObject *args, const char *format, tables_t tables, uint64_t ones)
{
    Py_buffer body;
    if (!PyArg_ParseTuple(args, format, &body))
        return NULL;
    uint64_t state;
    Py_BEGIN_ALLOW_THREADS
    state = run(tables, ones, body.buf, body.len) ^ ones;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&body);
    return PyLong_FromUnsignedLongLong(state);
}

PyDoc_STRVAR(crc32c_doc, "crc32c(buffer) -> int\n\nReturn the CRC-32C (Castagnoli) of a buffer.");

static PyObject *crc32c(PyObject *self, PyObject *args)
{
    (void)self;
    return checksum(args, "y*:crc32c", crc32c_tables, 0xffffffffu);
}

PyDoc_STRVAR(crc64nvme_doc, "crc64nvme(buffer) -> int\n\nReturn the CRC-64/NVME of a buffer.");

static PyObject *crc64nvme(PyObject *self, PyObject *args)
{
    (void)self;
    return checksum(args, "y*:crc64nvme", crc64nvme_tables, UINT64_MAX);
}

static PyMethodDef methods[] = {
    {"crc32c", crc32c, METH_VARARGS, crc32c_doc},
    {"crc64nvme", crc64nvme, METH_VARARGS, crc64nvme_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_crc", "Two checksums of S3.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__crc(void)
{
    fill(crc32c_tables, 0x82f63b78u);
    fill(crc64nvme_tables, 0x9a6c9329ac4bc9b5u);
    return PyModule_Create(&module);
}
