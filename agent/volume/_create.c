/* Small new files, many at a time: created, filled, dressed and looked at again without the GIL.
 *
 * A small file costs its system calls and, in Python, five times that. This kernel does for a batch
 * in one directory only what needs no decision: a new name, content that is in memory, an owner,
 * a mode and a time. Each file is created exclusively and through no symlink, and is reported as
 * done only if fstat(2) then shows every wanted fact. Whatever else may be the case (something is
 * there, an attribute was inherited, a right is missing, the disk is full) is not handled here: the
 * file gets a status that is not 0, and the caller does it again, one by one, in Python, which
 * decides and words the error. tests/volume/creation_twin.py is the same in Python.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { NOT_A_NAME = 253, NOT_AS_WANTED = 254, HAS_ATTRIBUTES = 255 };

/* As agent/volume/creation.py packs it. */
typedef struct {
    uint32_t uid, gid, mode, nanoseconds;
    int64_t seconds;
} facts_t;

typedef struct {
    const char *name;
    Py_ssize_t name_size;
    const char *content;
    Py_ssize_t size;
    Py_buffer held; /* what content points into */
} file_t;

/* What the machine puts on every file by itself, and a restore leaves alone. */
static const char *const LABELS[] = {"security.selinux", "security.ima", "security.evm"};

static int is_name(const file_t *file)
{
    if (file->name_size == 0 || strlen(file->name) != (size_t)file->name_size)
        return 0;
    if (strcmp(file->name, ".") == 0 || strcmp(file->name, "..") == 0)
        return 0;
    return strchr(file->name, '/') == NULL;
}

static int fill(int descriptor, const file_t *file)
{
    Py_ssize_t done = 0;
    while (done < file->size) {
        ssize_t count = write(descriptor, file->content + done, (size_t)(file->size - done));
        if (count > 0)
            done += count;
        else if (count == 0)
            return EIO;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* Tell whether the file has no attribute but labels: 0, HAS_ATTRIBUTES, or an error. */
static int attributes(int descriptor)
{
    char names[256];
    ssize_t size = flistxattr(descriptor, names, sizeof names);
    if (size < 0)
        return errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : HAS_ATTRIBUTES;
    for (ssize_t place = 0; place < size; place += (ssize_t)strlen(names + place) + 1) {
        size_t label = 0;
        while (label < 3 && strcmp(names + place, LABELS[label]) != 0)
            label++;
        if (label == 3)
            return HAS_ATTRIBUTES;
    }
    return 0;
}

/* Who a new file in a directory belongs to; the first file of a batch tells. */
typedef struct {
    int known;
    uint32_t uid, gid;
} owner_t;

static int dress(int descriptor, const file_t *file, const facts_t *facts, owner_t *owner)
{
    struct stat stat;
    int status = attributes(descriptor);
    if (status != 0)
        return status;
    if (!owner->known) {
        if (fstat(descriptor, &stat) < 0)
            return errno;
        *owner = (owner_t){1, stat.st_uid, stat.st_gid};
    }
    if ((owner->uid != facts->uid || owner->gid != facts->gid) &&
        fchown(descriptor, facts->uid, facts->gid) < 0)
        return errno;
    /* Set-id bits are for the owner that was meant, and not even for a moment for another. */
    if (facts->mode & (S_ISUID | S_ISGID)) {
        if (fstat(descriptor, &stat) < 0)
            return errno;
        if (stat.st_uid != facts->uid || stat.st_gid != facts->gid)
            return NOT_AS_WANTED;
    }
    if (fchmod(descriptor, facts->mode) < 0)
        return errno;
    struct timespec times[2];
    times[0].tv_sec = times[1].tv_sec = (time_t)facts->seconds;
    times[0].tv_nsec = times[1].tv_nsec = (long)facts->nanoseconds;
    if (futimens(descriptor, times) < 0 || fstat(descriptor, &stat) < 0)
        return errno;
    if (stat.st_uid != facts->uid || stat.st_gid != facts->gid ||
        (stat.st_mode & 07777) != facts->mode || stat.st_size != file->size ||
        stat.st_mtim.tv_sec != times[1].tv_sec || stat.st_mtim.tv_nsec != times[1].tv_nsec)
        return NOT_AS_WANTED;
    return 0;
}

static int create_one(int directory, const file_t *file, const facts_t *facts, owner_t *owner)
{
    if (!is_name(file))
        return NOT_A_NAME;
    int descriptor = openat(directory, file->name,
                            O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (descriptor < 0)
        return errno;
    int status = fill(descriptor, file);
    if (status == 0)
        status = dress(descriptor, file, facts, owner);
    if (close(descriptor) < 0 && status == 0)
        status = errno;
    return status;
}

/* Point at names and contents; return how many could be, all of which are to be let go. */
static Py_ssize_t collect(PyObject *names, PyObject *contents, file_t *files, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        char *name;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(names, i), &name, &files[i].name_size) < 0 ||
            PyObject_GetBuffer(PyTuple_GetItem(contents, i), &files[i].held, PyBUF_SIMPLE) < 0)
            return i;
        files[i].name = name;
        files[i].content = files[i].held.buf;
        files[i].size = files[i].held.len;
    }
    return count;
}

static void let_go(file_t *files, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        PyBuffer_Release(&files[i].held);
}

PyDoc_STRVAR(create_files_doc,
"create_files(directory, names, contents, facts) -> bytes\n\n"
"Create files in the open directory; return one status byte for each, 0 for done.\n\n"
"names is a tuple of bytes, contents one of buffers; facts is as many packed records.");

static PyObject *create_files(PyObject *self, PyObject *args)
{
    int directory;
    PyObject *names, *contents, *records;
    (void)self;
    if (!PyArg_ParseTuple(args, "iOOO:create_files", &directory, &names, &contents, &records))
        return NULL;
    if (!PyTuple_Check(names) || !PyTuple_Check(contents) || !PyBytes_Check(records)) {
        PyErr_SetString(PyExc_TypeError, "create_files takes (int, tuple, tuple, bytes)");
        return NULL;
    }
    Py_ssize_t count = PyTuple_Size(names);
    if (PyTuple_Size(contents) != count ||
        PyBytes_Size(records) != count * (Py_ssize_t)sizeof(facts_t)) {
        PyErr_SetString(PyExc_ValueError, "names, contents and facts are of different lengths");
        return NULL;
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, count);
    file_t *files = PyMem_Malloc((size_t)(count ? count : 1) * sizeof(file_t));
    Py_ssize_t held = 0;
    if (result == NULL || files == NULL || (held = collect(names, contents, files, count)) < count) {
        let_go(files, held);
        PyMem_Free(files);
        Py_XDECREF(result);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    unsigned char *statuses = (unsigned char *)PyBytes_AsString(result);
    const char *packed = PyBytes_AsString(records);
    owner_t owner = {0, 0, 0};
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        facts_t facts;
        memcpy(&facts, packed + i * (Py_ssize_t)sizeof facts, sizeof facts);
        statuses[i] = (unsigned char)create_one(directory, &files[i], &facts, &owner);
    }
    Py_END_ALLOW_THREADS
    let_go(files, count);
    PyMem_Free(files);
    return result;
}

static PyMethodDef methods[] = {
    {"create_files", create_files, METH_VARARGS, create_files_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_create", "Small new files, many at a time.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__create(void)
{
    return PyModule_Create(&module);
}
