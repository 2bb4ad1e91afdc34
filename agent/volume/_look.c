/* Looking at names and reading small files, many at a time, without the GIL.
 *
 * A small file costs its system calls and, in Python, five times that. `look` gets the facts of many
 * names of one directory and opens nothing. `read_files` reads regular files one behind the other
 * into a buffer. Each name is pinned first (O_PATH, which touches nothing) and must be the inode
 * that was listed; only what is pinned is then opened, by its magic link in /proc: whatever the
 * owner of the volume puts in its place is never opened. What is in any way unusual (a file that grew,
 * many attributes, any error) gets a status that is not 0: the caller does that one again, one
 * by one, in Python, which decides and words the error. tests/volume/look_twin.py is the same in Python.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef STATX_ATTR_MOUNT_ROOT
#define STATX_ATTR_MOUNT_ROOT 0x2000 /* statx(2); for a C library that is older than the kernel */
#endif

enum { MOUNT_UNTOLD = 251, MOUNT = 252, NO_ROOM = 253, REPLACED = 254, UNUSUAL = 255 };
enum { NAMES_BYTES = 1024, VALUE_BYTES = 4096, ATTRIBUTES_BYTES = 64 << 10 };

/* As agent/volume/looking.py unpacks it; the status is an errno or one of the above. */
typedef struct {
    uint32_t status, mode, uid, gid, mtime_nanoseconds, ctime_nanoseconds;
    int64_t mtime_seconds, ctime_seconds;
    uint64_t inode, device, rdev, links, size;
} facts_t;

typedef struct {
    uint64_t inode, device;
} pin_t;

typedef struct {
    facts_t facts;
    uint64_t start, length, attributes_start, attributes_length;
} file_t;

/* Attributes of a batch: for each one uint32 length of the name, uint32 of the value, both. */
typedef struct {
    char bytes[ATTRIBUTES_BYTES];
    size_t used;
} attributes_t;

static void tell(facts_t *facts, const struct stat *stat)
{
    facts->mode = stat->st_mode;
    facts->uid = stat->st_uid;
    facts->gid = stat->st_gid;
    facts->mtime_seconds = stat->st_mtim.tv_sec;
    facts->mtime_nanoseconds = (uint32_t)stat->st_mtim.tv_nsec;
    facts->ctime_seconds = stat->st_ctim.tv_sec;
    facts->ctime_nanoseconds = (uint32_t)stat->st_ctim.tv_nsec;
    facts->inode = stat->st_ino;
    facts->device = stat->st_dev;
    facts->rdev = stat->st_rdev;
    facts->links = stat->st_nlink;
    facts->size = (uint64_t)stat->st_size;
}

/* statx(2) tells, since Linux 5.8, what no other call does: whether a name is a mount point. */
static void look_at(int directory, const char *name, facts_t *facts)
{
    struct statx stat;
    memset(facts, 0, sizeof *facts);
    if (statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &stat) < 0) {
        facts->status = (uint32_t)errno;
        return;
    }
    if (!(stat.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT))
        facts->status = MOUNT_UNTOLD;
    else if (stat.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        facts->status = MOUNT;
    facts->mode = stat.stx_mode;
    facts->uid = stat.stx_uid;
    facts->gid = stat.stx_gid;
    facts->mtime_seconds = stat.stx_mtime.tv_sec;
    facts->mtime_nanoseconds = stat.stx_mtime.tv_nsec;
    facts->ctime_seconds = stat.stx_ctime.tv_sec;
    facts->ctime_nanoseconds = stat.stx_ctime.tv_nsec;
    facts->inode = stat.stx_ino;
    facts->device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    facts->rdev = makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    facts->links = stat.stx_nlink;
    facts->size = stat.stx_size;
}

/* Open what is pinned; without touching its atime, which only its owner and root may ask for. */
static int reopen(int pinned)
{
    char path[32];
    int flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
    snprintf(path, sizeof path, "/proc/self/fd/%d", pinned);
    int descriptor = open(path, flags | O_NOATIME);
    return descriptor < 0 && errno == EPERM ? open(path, flags) : descriptor;
}

/* Return a descriptor of the regular file of that name and inode, or -1 with a status. */
static int open_file(int directory, const char *name, const pin_t *wanted, uint32_t *status)
{
    struct stat stat;
    int pinned = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), descriptor = -1;
    *status = 0;
    if (pinned < 0) {
        *status = (uint32_t)errno;
        return -1;
    }
    if (fstat(pinned, &stat) < 0)
        *status = (uint32_t)errno;
    else if (!S_ISREG(stat.st_mode) || stat.st_ino != wanted->inode || stat.st_dev != wanted->device)
        *status = REPLACED;
    else if ((descriptor = reopen(pinned)) < 0)
        *status = (uint32_t)errno;
    close(pinned);
    return descriptor;
}

static int keep(attributes_t *kept, const void *bytes, size_t size)
{
    if (size > sizeof kept->bytes - kept->used)
        return 0;
    memcpy(kept->bytes + kept->used, bytes, size);
    kept->used += size;
    return 1;
}

static int keep_attribute(int descriptor, const char *name, attributes_t *kept)
{
    char value[VALUE_BYTES];
    ssize_t size = fgetxattr(descriptor, name, value, sizeof value);
    if (size < 0)
        return 0;
    uint32_t lengths[2] = {(uint32_t)strlen(name), (uint32_t)size};
    return keep(kept, lengths, sizeof lengths) && keep(kept, name, lengths[0]) &&
           keep(kept, value, lengths[1]);
}

static uint32_t read_attributes(int descriptor, file_t *file, attributes_t *kept)
{
    char names[NAMES_BYTES];
    ssize_t size = flistxattr(descriptor, names, sizeof names);
    file->attributes_start = kept->used;
    if (size < 0)
        return errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : UNUSUAL;
    for (ssize_t place = 0; place < size; place += (ssize_t)strlen(names + place) + 1)
        if (!keep_attribute(descriptor, names + place, kept))
            return UNUSUAL;
    file->attributes_length = kept->used - file->attributes_start;
    return 0;
}

/* Read all of a file, and see that it ends where it said. */
static uint32_t read_content(int descriptor, file_t *file, unsigned char *room, size_t left)
{
    size_t size = file->facts.size;
    if (left <= size)
        return NO_ROOM;
    while (file->length <= size) {
        ssize_t count = pread(descriptor, room + file->length, size + 1 - file->length,
                              (off_t)file->length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return (uint32_t)errno;
        file->length += (uint64_t)count;
        if (count == 0 || file->length == size)
            return 0; /* a read that stops short of what was asked for has met the end */
    }
    return UNUSUAL; /* it grew, or is of those that say they are empty */
}

static void read_one(int directory, const char *name, const pin_t *wanted, file_t *file,
                     attributes_t *kept, unsigned char *room, size_t left)
{
    struct stat stat;
    int descriptor = open_file(directory, name, wanted, &file->facts.status);
    if (descriptor < 0)
        return;
    if (fstat(descriptor, &stat) < 0) {
        file->facts.status = (uint32_t)errno;
    } else {
        tell(&file->facts, &stat);
        file->facts.status = read_attributes(descriptor, file, kept);
        if (file->facts.status == 0)
            file->facts.status = read_content(descriptor, file, room, left);
    }
    close(descriptor);
}

static const char **names_of(PyObject *tuple, Py_ssize_t *count)
{
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "names are a tuple of bytes");
        return NULL;
    }
    *count = PyTuple_Size(tuple);
    const char **names = PyMem_Malloc((size_t)(*count ? *count : 1) * sizeof *names);
    if (names == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < *count; i++) {
        char *name;
        /* without a length: a name with a NUL in it is refused */
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(tuple, i), &name, NULL) < 0) {
            PyMem_Free(names);
            return NULL;
        }
        names[i] = name;
    }
    return names;
}

PyDoc_STRVAR(look_doc,
"look(directory, names) -> bytes\n\n"
"Return the packed facts of each name of the open directory, through no symlink.");

static PyObject *look(PyObject *self, PyObject *args)
{
    int directory;
    PyObject *tuple;
    (void)self;
    if (!PyArg_ParseTuple(args, "iO:look", &directory, &tuple))
        return NULL;
    Py_ssize_t count;
    const char **names = names_of(tuple, &count);
    if (names == NULL)
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(facts_t));
    if (result != NULL) {
        facts_t *facts = (facts_t *)(void *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++)
            look_at(directory, names[i], &facts[i]);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(names);
    return result;
}

static void read_all(int directory, const char **names, const Py_buffer *pins, file_t *files,
                     attributes_t *kept, const Py_buffer *room)
{
    size_t used = 0;
    for (Py_ssize_t i = 0; i < pins->len / (Py_ssize_t)sizeof(pin_t); i++) {
        pin_t wanted; /* a copy: the bytes of a buffer may lie anywhere */
        memcpy(&wanted, (const char *)pins->buf + i * (Py_ssize_t)sizeof wanted, sizeof wanted);
        memset(&files[i], 0, sizeof files[i]);
        files[i].start = used;
        read_one(directory, names[i], &wanted, &files[i], kept,
                 (unsigned char *)room->buf + used, (size_t)room->len - used);
        if (files[i].facts.status == 0)
            used += files[i].length;
    }
}

PyDoc_STRVAR(read_files_doc,
"read_files(directory, names, pins, buffer) -> (files, attributes)\n\n"
"Read regular files one behind the other into buffer, which takes a byte more than they have. pins\n"
"are pairs of uint64, inode and device, for each name; files are records of the facts from before\n"
"the first byte, then start and length in buffer, and in attributes.");

static PyObject *read_files(PyObject *self, PyObject *args)
{
    int directory;
    PyObject *tuple, *files = NULL, *result = NULL;
    Py_buffer pins, room;
    (void)self;
    if (!PyArg_ParseTuple(args, "iOy*w*:read_files", &directory, &tuple, &pins, &room))
        return NULL;
    Py_ssize_t count = 0;
    const char **names = names_of(tuple, &count);
    attributes_t *kept = malloc(sizeof *kept);
    if (names != NULL && pins.len != count * (Py_ssize_t)sizeof(pin_t))
        PyErr_SetString(PyExc_ValueError, "names and pins are of different lengths");
    else if (names != NULL && kept == NULL)
        PyErr_NoMemory();
    else if (names != NULL)
        files = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(file_t));
    if (files != NULL) {
        file_t *records = (file_t *)(void *)PyBytes_AsString(files);
        kept->used = 0;
        Py_BEGIN_ALLOW_THREADS
        read_all(directory, names, &pins, records, kept, &room);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("Oy#", files, kept->bytes, (Py_ssize_t)kept->used);
        Py_DECREF(files);
    }
    free(kept);
    PyMem_Free(names);
    PyBuffer_Release(&pins);
    PyBuffer_Release(&room);
    return result;
}

static PyMethodDef methods[] = {
    {"look", look, METH_VARARGS, look_doc},
    {"read_files", read_files, METH_VARARGS, read_files_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_look", "Names looked at and small files read, many at a time.", 0,
    methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__look(void)
{
    return PyModule_Create(&module);
}
