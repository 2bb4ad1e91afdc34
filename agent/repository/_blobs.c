/* The blob kernel: many blobs hashed, sealed or opened in one call, without the GIL.
 *
 * A small blob costs five microseconds of hashing, compressing and encrypting and, in Python, four
 * times that, during which no other thread runs. This kernel takes a buffer with many blobs in it
 * and writes to another buffer; nothing is allocated a blob, and the contexts of the ciphers and of
 * zstd are kept. What cannot be sealed or opened as expected gets a status, and Python decides and
 * words the error. agent/repository/kernel.py has the same in Python, and says when it is used.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "_blob.h"

typedef struct {
    uint64_t start, size;
} span_t;

/* As kernel.py packs what is to be opened. */
typedef struct {
    uint64_t offset;
    uint32_t length, plain_length;
    unsigned char id[ID];
} sealed_t;

typedef struct {
    PyObject_HEAD
    secrets_t secrets;
    context_t *idle; /* guarded by the GIL */
} kernel_t;

static context_t *take_context(kernel_t *self)
{
    context_t *context = self->idle;
    if (context != NULL)
        self->idle = context->next;
    else if ((context = new_context(&self->secrets)) == NULL)
        PyErr_NoMemory();
    return context;
}

static void give_back(kernel_t *self, context_t *context)
{
    context->next = self->idle;
    self->idle = context;
}

static int lies_in(const Py_buffer *data, uint64_t start, uint64_t size)
{
    return size <= (uint64_t)data->len && start <= (uint64_t)data->len - size;
}

/* Read packed records; NULL with an exception if their number or a span does not fit. */
static const span_t *read_spans(const Py_buffer *data, const Py_buffer *packed, Py_ssize_t *count)
{
    const span_t *spans = packed->buf;
    *count = packed->len / (Py_ssize_t)sizeof(span_t);
    int fits = packed->len % (Py_ssize_t)sizeof(span_t) == 0;
    for (Py_ssize_t i = 0; fits && i < *count; i++)
        fits = lies_in(data, spans[i].start, spans[i].size);
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "a span does not lie in the buffer");
    return fits ? spans : NULL;
}

PyDoc_STRVAR(hash_doc,
"hash(data, spans) -> (ids, seals)\n\n"
"Return the SHA-256 (32 bytes) and the XXH3 (8 bytes, native order) of each span of data.\n"
"spans are pairs of uint64: start and size.");

static PyObject *kernel_hash(PyObject *object, PyObject *args)
{
    kernel_t *self = (kernel_t *)object;
    Py_buffer data, packed;
    if (!PyArg_ParseTuple(args, "y*y*:hash", &data, &packed))
        return NULL;
    Py_ssize_t count;
    const span_t *spans = read_spans(&data, &packed, &count);
    context_t *context = spans == NULL ? NULL : take_context(self);
    PyObject *ids = NULL, *seals = NULL, *result = NULL;
    int status = 0;
    if (context == NULL || (ids = PyBytes_FromStringAndSize(NULL, count * ID)) == NULL ||
        (seals = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(uint64_t))) == NULL)
        goto end;
    unsigned char *id = (unsigned char *)PyBytes_AsString(ids);
    char *seal = PyBytes_AsString(seals);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count && status == 0; i++) {
        const unsigned char *plain = (const unsigned char *)data.buf + spans[i].start;
        uint64_t found = lib.XXH3_64bits(plain, spans[i].size);
        memcpy(seal + i * (Py_ssize_t)sizeof found, &found, sizeof found);
        status = sha256(context, plain, spans[i].size, id + i * ID);
    }
    Py_END_ALLOW_THREADS
    if (status != 0)
        PyErr_SetString(PyExc_RuntimeError, "libcrypto could not hash");
    else
        result = PyTuple_Pack(2, ids, seals);
end:
    if (context != NULL)
        give_back(self, context);
    Py_XDECREF(ids);
    Py_XDECREF(seals);
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    return result;
}

static int all_lie_in(const Py_buffer *data, const Py_buffer *packed)
{
    const plain_t *blobs = packed->buf;
    int fits = packed->len % (Py_ssize_t)sizeof(plain_t) == 0;
    for (Py_ssize_t i = 0; fits && i < packed->len / (Py_ssize_t)sizeof(plain_t); i++)
        fits = lies_in(data, blobs[i].start, blobs[i].size);
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "a blob does not lie in the buffer");
    return fits;
}

/* Seal one blob after the other; return the status of the first that failed, or 0. */
static int seal_all(context_t *context, const Py_buffer *data, const Py_buffer *packed, int always,
                    const Py_buffer *out, stored_t *stored)
{
    const plain_t *blobs = packed->buf;
    size_t used = 0;
    for (Py_ssize_t i = 0; i < packed->len / (Py_ssize_t)sizeof(plain_t); i++) {
        int status = seal_blob(context, (const unsigned char *)data->buf + blobs[i].start, &blobs[i],
                               always, (unsigned char *)out->buf + used, (size_t)out->len - used,
                               &stored[i]);
        if (status != 0)
            return status;
        used += stored[i].length;
    }
    return 0;
}

PyDoc_STRVAR(seal_doc,
"seal(data, blobs, always, out) -> (status, stored)\n\n"
"Seal the blobs one behind the other into out. blobs are records of uint64 start, size and XXH3,\n"
"and an IV; stored are pairs of uint32: the sealed length, and the plain length or 0 if the blob is\n"
"not compressed; with always every blob is. A status that is not 0 says that a blob could not be\n"
"sealed, or did not open to its XXH3 again; stored is of no use then.");

static PyObject *kernel_seal(PyObject *object, PyObject *args)
{
    kernel_t *self = (kernel_t *)object;
    Py_buffer data, packed, out;
    int always;
    if (!PyArg_ParseTuple(args, "y*y*pw*:seal", &data, &packed, &always, &out))
        return NULL;
    PyObject *result = NULL, *stored = NULL;
    context_t *context = all_lie_in(&data, &packed) ? take_context(self) : NULL;
    if (context != NULL) {
        Py_ssize_t count = packed.len / (Py_ssize_t)sizeof(plain_t);
        stored = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(stored_t));
        if (stored != NULL) {
            stored_t *records = (stored_t *)(void *)PyBytes_AsString(stored);
            int status;
            Py_BEGIN_ALLOW_THREADS
            status = seal_all(context, &data, &packed, always, &out, records);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("iO", status, stored);
        }
        give_back(self, context);
    }
    Py_XDECREF(stored);
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&out);
    return result;
}

static size_t plain_size(const sealed_t *blob)
{
    if (blob->plain_length != 0)
        return blob->plain_length;
    return blob->length < OVERHEAD ? 0 : blob->length - OVERHEAD;
}

static int opening_fits(const Py_buffer *packed, const Py_buffer *out)
{
    const sealed_t *blobs = packed->buf;
    uint64_t needed = 0;
    for (Py_ssize_t i = 0; i < packed->len / (Py_ssize_t)sizeof(sealed_t); i++)
        needed += plain_size(&blobs[i]);
    if (packed->len % (Py_ssize_t)sizeof(sealed_t) == 0 && needed <= (uint64_t)out->len)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the blobs do not fit into the buffer");
    return 0;
}

static void open_all(context_t *context, const Py_buffer *data, const Py_buffer *packed,
                     unsigned char *out, unsigned char *statuses)
{
    const sealed_t *blobs = packed->buf;
    for (Py_ssize_t i = 0; i < packed->len / (Py_ssize_t)sizeof(sealed_t); i++) {
        size_t size = plain_size(&blobs[i]);
        int status = FAILED;
        if (lies_in(data, blobs[i].offset, blobs[i].length))
            status = open_blob(context, (const unsigned char *)data->buf + blobs[i].offset,
                               blobs[i].length, blobs[i].plain_length != 0, blobs[i].id, out, size);
        statuses[i] = (unsigned char)status;
        out += size;
    }
}

PyDoc_STRVAR(open_doc,
"open(data, blobs, out) -> statuses\n\n"
"Open the blobs that lie in data one behind the other into out, and compare each with its id.\n"
"blobs are records of uint64 offset, uint32 length, uint32 plain length (0: not compressed), id.\n"
"Each takes its plain size in out, also if its status is not 0; nothing is to be read there then.");

static PyObject *kernel_open(PyObject *object, PyObject *args)
{
    kernel_t *self = (kernel_t *)object;
    Py_buffer data, packed, out;
    if (!PyArg_ParseTuple(args, "y*y*w*:open", &data, &packed, &out))
        return NULL;
    PyObject *statuses = NULL;
    context_t *context = opening_fits(&packed, &out) ? take_context(self) : NULL;
    if (context != NULL) {
        Py_ssize_t count = packed.len / (Py_ssize_t)sizeof(sealed_t);
        statuses = PyBytes_FromStringAndSize(NULL, count);
        if (statuses != NULL) {
            unsigned char *status = (unsigned char *)PyBytes_AsString(statuses);
            Py_BEGIN_ALLOW_THREADS
            open_all(context, &data, &packed, out.buf, status);
            Py_END_ALLOW_THREADS
        }
        give_back(self, context);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&out);
    return statuses;
}

static PyObject *kernel_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Py_buffer encrypt, mac_k, mac_r;
    int level, small_level;
    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "Kernel takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "y*y*y*ii:Kernel", &encrypt, &mac_k, &mac_r, &level,
                          &small_level))
        return NULL;
    kernel_t *self = NULL;
    if (mac_poly1305 == NULL)
        PyErr_SetString(PyExc_RuntimeError, "load() has not been called");
    else if (encrypt.len != 32 || mac_k.len != 16 || mac_r.len != 16)
        PyErr_SetString(PyExc_ValueError, "the parts of a key have 32, 16 and 16 bytes");
    else
        self = (kernel_t *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self != NULL) {
        memcpy(self->secrets.encrypt, encrypt.buf, 32);
        memcpy(self->secrets.mac_k, mac_k.buf, 16);
        memcpy(self->secrets.mac_r, mac_r.buf, 16);
        self->secrets.level = level;
        self->secrets.small_level = small_level;
    }
    PyBuffer_Release(&encrypt);
    PyBuffer_Release(&mac_k);
    PyBuffer_Release(&mac_r);
    return (PyObject *)self;
}

static void kernel_dealloc(PyObject *object)
{
    kernel_t *self = (kernel_t *)object;
    PyTypeObject *type = Py_TYPE(object);
    while (self->idle != NULL) {
        context_t *next = self->idle->next;
        free_context(self->idle);
        self->idle = next;
    }
    memset(&self->secrets, 0, sizeof self->secrets);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef kernel_methods[] = {
    {"hash", kernel_hash, METH_VARARGS, hash_doc},
    {"seal", kernel_seal, METH_VARARGS, seal_doc},
    {"open", kernel_open, METH_VARARGS, open_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot kernel_slots[] = {
    {Py_tp_new, (void *)(uintptr_t)kernel_new},
    {Py_tp_dealloc, (void *)(uintptr_t)kernel_dealloc},
    {Py_tp_methods, kernel_methods},
    {0, NULL},
};

static PyType_Spec kernel_spec = {
    "agent.repository._blobs.Kernel", sizeof(kernel_t), 0, Py_TPFLAGS_DEFAULT, kernel_slots,
};

PyDoc_STRVAR(load_doc,
"load(libcrypto, zstd, xxhash)\n\n"
"Find the functions of the three libraries; raise ImportError that names what is missing.");

static PyObject *load(PyObject *module, PyObject *args)
{
    const char *crypto, *zstd, *xxhash, *missing;
    (void)module;
    if (!PyArg_ParseTuple(args, "sss:load", &crypto, &zstd, &xxhash))
        return NULL;
    if ((missing = load_library(crypto, CRYPTO)) == NULL &&
        (missing = load_library(zstd, ZSTD)) == NULL &&
        (missing = load_library(xxhash, XXHASH)) == NULL && (missing = fetch_algorithms()) == NULL)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ImportError, "the blob kernel does not find %s", missing);
}

static PyMethodDef methods[] = {
    {"load", load, METH_VARARGS, load_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_blobs", "Many blobs hashed, sealed or opened in one call.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__blobs(void)
{
    PyObject *self = PyModule_Create(&module);
    PyObject *type = self == NULL ? NULL : PyType_FromSpec(&kernel_spec);
    if (type == NULL || PyModule_AddObjectRef(self, "Kernel", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(self);
        return NULL;
    }
    Py_DECREF(type);
    return self;
}
