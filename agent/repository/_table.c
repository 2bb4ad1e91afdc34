/* Tables of blobs: looked up, sorted, merged and added up without the GIL.
 *
 * A table of n blobs is one run of bytes, in four columns, all in order of blob ids:
 *   starts  u32 for each stem and one more: where the blobs with that stem begin
 *   hints   4 bytes of each id, those after the stem
 *   rests   the other bytes of each id
 *   places  pack number, offset, length, plain length of each, u32 little endian
 * The stem is the first byte of an id, or the first two if there are at least 65,536 blobs, and is
 * stored nowhere. A blob that is not there is found missing in 4 bytes a blob of memory; only one
 * that is there (or shares 48 bits with one that is) touches the rests; places wait until asked.
 *
 * A row is the same as a record of 48 bytes: id, then place.
 *
 * Mapping is a file in memory that holds no descriptor, as Python's mmap does until 3.13: an index may
 * be a thousand files. A file may be removed while it is mapped, but never changed.
 *
 * Bytes may come from a torn file: sizes that do not fit together are refused by ValueError, and
 * no number in a column is followed without comparing it with the count.
 * tests/repository/table_twin.py is the same in Python.
 */
#define PY_SSIZE_T_CLEAN
#define _DEFAULT_SOURCE
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { ID = 32, HINT = 4, PLACE = 16, ROW = 48, TWO_BYTES_FROM = 65536, SOURCES = 4096 };

typedef struct {
    Py_buffer view;
    const uint8_t *starts, *hints, *rests, *places;
    size_t count, rest;
    uint32_t stems;
    int stem;
} table_t;

static uint32_t little(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put_little(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static int stem_size(size_t count) { return count < TWO_BYTES_FROM ? 1 : 2; }

static size_t body_size(size_t count)
{
    size_t stem = (size_t)stem_size(count);
    return 4 * (((size_t)1 << 8 * stem) + 1) + count * (ID - stem + PLACE);
}

static int refuse(const char *why)
{
    PyErr_SetString(PyExc_ValueError, why);
    return -1;
}

/* Open the two arguments that say a table: its bytes and how many blobs it has. */
static int open_table(table_t *table, PyObject *body, PyObject *number)
{
    Py_ssize_t count = PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (count == -1 && PyErr_Occurred())
        return -1;
    if (count < 0 || count > UINT32_MAX)
        return refuse("a table has between 0 and 2**32 blobs");
    if (PyObject_GetBuffer(body, &table->view, PyBUF_SIMPLE) < 0)
        return -1;
    table->count = (size_t)count;
    if ((size_t)table->view.len != body_size(table->count)) {
        PyBuffer_Release(&table->view);
        return refuse("the bytes of a table do not fit its count");
    }
    table->stem = stem_size(table->count);
    table->stems = (uint32_t)1 << 8 * table->stem;
    table->rest = (size_t)(ID - HINT - table->stem);
    table->starts = table->view.buf;
    table->hints = table->starts + 4 * ((size_t)table->stems + 1);
    table->rests = table->hints + HINT * table->count;
    table->places = table->rests + table->rest * table->count;
    return 0;
}

static size_t start_of(const table_t *table, uint32_t stem)
{
    size_t start = little(table->starts + 4 * (size_t)stem);
    return start < table->count ? start : table->count;
}

static uint32_t stem_of(const table_t *table, const uint8_t *id)
{
    return table->stem == 1 ? id[0] : (uint32_t)id[0] << 8 | id[1];
}

static int compare(const table_t *table, size_t at, const uint8_t *id)
{
    int order = memcmp(table->hints + HINT * at, id + table->stem, HINT);
    if (order != 0)
        return order;
    return memcmp(table->rests + table->rest * at, id + table->stem + HINT, table->rest);
}

/* Return the first place of an id, or -1. */
static int64_t locate(const table_t *table, const uint8_t *id)
{
    uint32_t stem = stem_of(table, id);
    size_t low = start_of(table, stem), end = start_of(table, stem + 1), high = end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare(table, middle, id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && compare(table, low, id) == 0 ? (int64_t)low : -1;
}

/* Return the stem of the blob at a position. */
static uint32_t stem_at(const table_t *table, size_t at)
{
    uint32_t low = 0, high = table->stems - 1;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (start_of(table, middle) <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static void read_row(const table_t *table, size_t at, uint32_t stem, uint8_t *row)
{
    if (table->stem == 2)
        row[0] = (uint8_t)(stem >> 8);
    row[table->stem - 1] = (uint8_t)stem;
    memcpy(row + table->stem, table->hints + HINT * at, HINT);
    memcpy(row + table->stem + HINT, table->rests + table->rest * at, table->rest);
    memcpy(row + ID, table->places + PLACE * at, PLACE);
}

/* Where the columns of new blobs are written; `stems` are those from `first` on. */
typedef struct {
    uint8_t *starts, *hints, *rests, *places;
    size_t rest, done;
    uint32_t first, next, stems, base;
    int stem;
} columns_t;

/* Note that the blobs of all stems below one end here. */
static void end_stems(columns_t *to, uint32_t below)
{
    while (to->next < below && to->next - to->first < to->stems) {
        put_little(to->starts + 4 * (size_t)(to->next - to->first), to->base + (uint32_t)to->done);
        to->next++;
    }
}

static void write_row(columns_t *to, const uint8_t *row)
{
    end_stems(to, to->stem == 1 ? row[0] : (uint32_t)row[0] << 8 | row[1]);
    memcpy(to->hints + HINT * to->done, row + to->stem, HINT);
    memcpy(to->rests + to->rest * to->done, row + to->stem + HINT, to->rest);
    memcpy(to->places + PLACE * to->done, row + ID, PLACE);
    to->done++;
}

static int by_bytes(const void *one, const void *other) { return memcmp(one, other, ROW); }

static void sort_rows(uint8_t *rows, size_t count, uint8_t *body)
{
    qsort(rows, count, ROW, by_bytes);
    int stem = stem_size(count);
    uint32_t stems = (uint32_t)1 << 8 * stem;
    columns_t to = {.stem = stem, .stems = stems, .rest = (size_t)(ID - HINT - stem)};
    put_little(body, 0);
    to.starts = body + 4;
    to.hints = to.starts + 4 * (size_t)stems;
    to.rests = to.hints + HINT * count;
    to.places = to.rests + to.rest * count;
    for (size_t at = 0; at < count; at++)
        write_row(&to, rows + ROW * at);
    end_stems(&to, stems);
}

PyDoc_STRVAR(build_doc, "build(rows, /)\n--\n\nReturn the table of rows in any order.");

static PyObject *build(PyObject *Py_UNUSED(module), PyObject *given)
{
    Py_buffer rows;
    if (PyObject_GetBuffer(given, &rows, PyBUF_SIMPLE) < 0)
        return NULL;
    size_t count = (size_t)rows.len / ROW;
    PyObject *body = NULL;
    if (rows.len % ROW != 0 || count > UINT32_MAX) {
        refuse("rows are 48 bytes each");
        goto done;
    }
    uint8_t *copy = malloc(rows.len ? (size_t)rows.len : 1);
    body = copy ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)body_size(count)) : PyErr_NoMemory();
    if (body) {
        Py_BEGIN_ALLOW_THREADS
        memcpy(copy, rows.buf, (size_t)rows.len);
        sort_rows(copy, count, (uint8_t *)PyBytes_AsString(body));
        Py_END_ALLOW_THREADS
    }
    free(copy);
done:
    PyBuffer_Release(&rows);
    return body;
}

/* Open a table and 32-byte ids; on failure nothing is left open. */
static int open_both(PyObject *const *args, Py_ssize_t count, table_t *table, Py_buffer *ids)
{
    if (count < 3)
        return refuse("a table's bytes, its count and ids are needed");
    if (open_table(table, args[0], args[1]) < 0)
        return -1;
    if (PyObject_GetBuffer(args[2], ids, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&table->view);
        return -1;
    }
    if (ids->len % ID == 0)
        return 0;
    PyBuffer_Release(ids);
    PyBuffer_Release(&table->view);
    return refuse("ids are 32 bytes each");
}

PyDoc_STRVAR(find_doc, "find(body, count, id, /)\n--\n\nReturn the first position of a blob, or -1.");

static PyObject *find(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    table_t table;
    Py_buffer ids;
    if (open_both(args, count, &table, &ids) < 0)
        return NULL;
    int64_t at = ids.len == ID ? locate(&table, ids.buf) : -2;
    PyBuffer_Release(&ids);
    PyBuffer_Release(&table.view);
    if (at == -2) {
        refuse("an id is 32 bytes");
        return NULL;
    }
    return PyLong_FromLongLong(at);
}

PyDoc_STRVAR(positions_doc, "positions(body, count, ids, /)\n--\n\n"
                            "Return the first position of each blob, or -1, as native int64.");

static PyObject *positions(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    table_t table;
    Py_buffer ids;
    if (open_both(args, count, &table, &ids) < 0)
        return NULL;
    Py_ssize_t wanted = ids.len / ID;
    PyObject *found = PyBytes_FromStringAndSize(NULL, wanted * (Py_ssize_t)sizeof(int64_t));
    if (found) {
        char *to = PyBytes_AsString(found);
        const uint8_t *id = ids.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < wanted; i++) {
            int64_t at = locate(&table, id + ID * i);
            memcpy(to + sizeof at * (size_t)i, &at, sizeof at);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&ids);
    PyBuffer_Release(&table.view);
    return found;
}

PyDoc_STRVAR(known_doc, "known(body, count, ids, marks, /)\n--\n\n"
                        "Set the mark of each blob that is here to 1; marks are one byte an id.");

static PyObject *known(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    table_t table;
    Py_buffer ids, marks;
    if (open_both(args, count, &table, &ids) < 0)
        return NULL;
    int fits = 0;
    if (count == 4 && PyObject_GetBuffer(args[3], &marks, PyBUF_WRITABLE) == 0) {
        fits = marks.len == ids.len / ID;
        uint8_t *mark = marks.buf;
        const uint8_t *id = ids.buf;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            for (Py_ssize_t i = 0; i < marks.len; i++)
                if (!mark[i] && locate(&table, id + ID * i) >= 0)
                    mark[i] = 1;
            Py_END_ALLOW_THREADS
        }
        PyBuffer_Release(&marks);
    }
    PyBuffer_Release(&ids);
    PyBuffer_Release(&table.view);
    if (fits)
        Py_RETURN_NONE;
    if (!PyErr_Occurred())
        refuse("there is one mark for each id");
    return NULL;
}

PyDoc_STRVAR(rows_doc, "rows(body, count, first, end, /)\n--\n\n"
                       "Return the rows of positions from first to before end.");

static PyObject *rows(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    table_t table;
    if (count != 4) {
        refuse("a table's bytes, its count, first and end are needed");
        return NULL;
    }
    Py_ssize_t first = PyNumber_AsSsize_t(args[2], PyExc_OverflowError);
    Py_ssize_t end = PyNumber_AsSsize_t(args[3], PyExc_OverflowError);
    if (PyErr_Occurred() || open_table(&table, args[0], args[1]) < 0)
        return NULL;
    PyObject *found = NULL;
    if (first < 0 || end < first || (size_t)end > table.count)
        refuse("there are no such positions");
    else
        found = PyBytes_FromStringAndSize(NULL, (end - first) * ROW);
    if (found) {
        uint8_t *row = (uint8_t *)PyBytes_AsString(found);
        uint32_t stem = first < end ? stem_at(&table, (size_t)first) : 0;
        for (size_t at = (size_t)first; at < (size_t)end; at++, row += ROW) {
            while (stem + 1 < table.stems && start_of(&table, stem + 1) <= at)
                stem++;
            read_row(&table, at, stem, row);
        }
    }
    PyBuffer_Release(&table.view);
    return found;
}

PyDoc_STRVAR(sums_doc, "sums(body, count, packs, entry, plain_entry, /)\n--\n\n"
                       "Return the bytes each pack adds up to, native uint64: lengths, and for\n"
                       "each blob plain_entry if its plain length is 0, entry if not.");

static PyObject *sums(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *body, *number;
    Py_ssize_t packs;
    unsigned int entry, plain_entry;
    table_t table;
    if (!PyArg_ParseTuple(args, "OOnII", &body, &number, &packs, &entry, &plain_entry) ||
        open_table(&table, body, number) < 0)
        return NULL;
    uint64_t *sum = packs >= 0 ? calloc((size_t)packs + 1, sizeof *sum) : NULL;
    int fits = sum != NULL;
    if (sum) {
        Py_BEGIN_ALLOW_THREADS
        for (const uint8_t *at = table.places, *end = at + PLACE * table.count; at < end; at += PLACE) {
            uint32_t pack = little(at);
            if (pack >= (size_t)packs) {
                fits = 0;
                break;
            }
            sum[pack] += (uint64_t)little(at + 8) + (little(at + 12) ? entry : plain_entry);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&table.view);
    PyObject *found = NULL;
    if (fits)
        found = PyBytes_FromStringAndSize((char *)sum, packs * (Py_ssize_t)sizeof *sum);
    else
        refuse("a blob lies in a pack that there is not");
    free(sum);
    return found;
}

/* Copy the rows whose pack has the mark `wanted`; without `to` only count them. */
static size_t pick(const table_t *table, const Py_buffer *marks, int wanted, uint8_t *to)
{
    size_t found = 0;
    uint32_t stem = 0;
    for (size_t at = 0; at < table->count; at++) {
        size_t pack = little(table->places + PLACE * at);
        if ((pack < (size_t)marks->len && ((uint8_t *)marks->buf)[pack] != 0) != wanted)
            continue;
        while (to && stem + 1 < table->stems && start_of(table, stem + 1) <= at)
            stem++;
        if (to)
            read_row(table, at, stem, to + ROW * found);
        found++;
    }
    return found;
}

PyDoc_STRVAR(select_doc, "select(body, count, marks, wanted, /)\n--\n\n"
                         "Return the rows whose pack is marked (one byte a pack), or those of all\n"
                         "others if wanted is false.");

static PyObject *select_rows(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *body, *number, *given, *found = NULL;
    int wanted;
    table_t table;
    Py_buffer marks;
    if (!PyArg_ParseTuple(args, "OOOp", &body, &number, &given, &wanted) ||
        open_table(&table, body, number) < 0)
        return NULL;
    if (PyObject_GetBuffer(given, &marks, PyBUF_SIMPLE) == 0) {
        size_t size;
        Py_BEGIN_ALLOW_THREADS
        size = pick(&table, &marks, wanted, NULL);
        Py_END_ALLOW_THREADS
        found = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(ROW * size));
        if (found) {
            uint8_t *to = (uint8_t *)PyBytes_AsString(found);
            Py_BEGIN_ALLOW_THREADS
            pick(&table, &marks, wanted, to);
            Py_END_ALLOW_THREADS
        }
        PyBuffer_Release(&marks);
    }
    PyBuffer_Release(&table.view);
    return found;
}

/* A table that is being merged: where it stands, and the row there. */
typedef struct {
    table_t table;
    size_t at, end;
    uint32_t stem, first_pack;
    uint8_t row[ROW];
} source_t;

static void load(source_t *from)
{
    if (from->at >= from->end)
        return;
    while (from->stem + 1 < from->table.stems && start_of(&from->table, from->stem + 1) <= from->at)
        from->stem++;
    read_row(&from->table, from->at, from->stem, from->row);
    put_little(from->row + ID, little(from->row + ID) + from->first_pack);
}

/* Tell whether one source goes before another; equal ids go in the order of their sources. */
static int before(const source_t *one, const source_t *other)
{
    int order = memcmp(one->row, other->row, ID);
    return order < 0 || (order == 0 && one < other);
}

static void sink(source_t **heap, size_t size, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], heap[at]))
            return;
        source_t *up = heap[child];
        heap[child] = heap[at];
        heap[at] = up;
    }
}

static void merge_rows(source_t *sources, size_t count, source_t **heap, columns_t *to)
{
    size_t size = 0;
    for (size_t i = 0; i < count; i++) {
        load(&sources[i]);
        if (sources[i].at < sources[i].end)
            heap[size++] = &sources[i];
    }
    for (size_t i = size / 2; i-- > 0;)
        sink(heap, size, i);
    while (size > 0) {
        source_t *least = heap[0];
        write_row(to, least->row);
        least->at++;
        load(least);
        if (least->at >= least->end)
            heap[0] = heap[--size];
        sink(heap, size, 0);
    }
    end_stems(to, to->first + to->stems);
}

/* Make the four columns of `wanted` blobs that begin with one byte. */
static PyObject *make_columns(columns_t *to, unsigned int byte, size_t wanted)
{
    to->stems = to->stem == 1 ? 1 : 256;
    to->first = to->next = byte * to->stems;
    to->rest = (size_t)(ID - HINT - to->stem);
    size_t sizes[4] = {4 * (size_t)to->stems, HINT * wanted, to->rest * wanted, PLACE * wanted};
    uint8_t **columns[4] = {&to->starts, &to->hints, &to->rests, &to->places};
    PyObject *made = PyTuple_New(4);
    for (Py_ssize_t i = 0; made && i < 4; i++) {
        PyObject *column = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizes[i]);
        if (!column) {
            Py_DECREF(made);
            return NULL;
        }
        *columns[i] = (uint8_t *)PyBytes_AsString(column);
        PyTuple_SetItem(made, i, column);
    }
    return made;
}

/* Open the tables of a tuple of (body, count, first pack), at the blobs that begin with a byte. */
static Py_ssize_t open_sources(PyObject *given, unsigned int byte, source_t *sources, size_t *wanted)
{
    Py_ssize_t opened = 0, count = PyTuple_Size(given);
    for (; opened < count; opened++) {
        PyObject *body, *number;
        source_t *from = &sources[opened];
        if (!PyArg_ParseTuple(PyTuple_GetItem(given, opened), "OOI", &body, &number, &from->first_pack) ||
            open_table(&from->table, body, number) < 0)
            break;
        uint32_t of_byte = from->table.stems / 256;
        from->stem = byte * of_byte;
        from->at = start_of(&from->table, from->stem);
        from->end = start_of(&from->table, (byte + 1) * of_byte);
        if (from->end > from->at)
            *wanted += from->end - from->at;
    }
    return opened;
}

static void close_sources(source_t *sources, Py_ssize_t opened)
{
    for (Py_ssize_t i = 0; i < opened; i++)
        PyBuffer_Release(&sources[i].table.view);
    free(sources);
}

PyDoc_STRVAR(merge_doc, "merge(tables, byte, stem, base, /)\n--\n\n"
                        "Return starts, hints, rests and places of all blobs that begin with a byte\n"
                        "for a table with stems of 1 or 2 bytes in which `base` blobs come before.\n"
                        "Tables are (body, count, number of its first pack).");

static PyObject *merge(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given, *made = NULL;
    unsigned int byte;
    columns_t to = {0};
    if (!PyArg_ParseTuple(args, "O!IiI", &PyTuple_Type, &given, &byte, &to.stem, &to.base))
        return NULL;
    Py_ssize_t count = PyTuple_Size(given), opened = 0;
    if (count > SOURCES || byte > 255 || (to.stem != 1 && to.stem != 2)) {
        refuse("at most 4096 tables, a byte, and stems of 1 or 2 bytes");
        return NULL;
    }
    size_t wanted = 0;
    source_t *sources = calloc((size_t)count + 1, sizeof *sources);
    source_t **heap = calloc((size_t)count + 1, sizeof *heap);
    if (sources && heap)
        opened = open_sources(given, byte, sources, &wanted);
    else
        PyErr_NoMemory();
    if (!PyErr_Occurred() && (made = make_columns(&to, byte, wanted)) != NULL) {
        Py_BEGIN_ALLOW_THREADS
        merge_rows(sources, (size_t)count, heap, &to);
        Py_END_ALLOW_THREADS
    }
    close_sources(sources, opened);
    free(heap);
    return made;
}

static PyMethodDef methods[] = {
    {"build", build, METH_O, build_doc},
    {"find", (PyCFunction)(void (*)(void))find, METH_FASTCALL, find_doc},
    {"positions", (PyCFunction)(void (*)(void))positions, METH_FASTCALL, positions_doc},
    {"known", (PyCFunction)(void (*)(void))known, METH_FASTCALL, known_doc},
    {"rows", (PyCFunction)(void (*)(void))rows, METH_FASTCALL, rows_doc},
    {"sums", sums, METH_VARARGS, sums_doc},
    {"select", select_rows, METH_VARARGS, select_doc},
    {"merge", merge, METH_VARARGS, merge_doc},
    {NULL, NULL, 0, NULL},
};

typedef struct {
    PyObject_HEAD
    void *content;
    Py_ssize_t size;
} mapping_t;

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(named))
{
    int descriptor;
    struct stat stat;
    if (!PyArg_ParseTuple(args, "i", &descriptor))
        return NULL;
    if (fstat(descriptor, &stat) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    void *content = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (content == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    mapping_t *made = (mapping_t *)allocate(type, 0);
    if (made) {
        made->content = content;
        made->size = (Py_ssize_t)stat.st_size;
    } else
        munmap(content, (size_t)stat.st_size);
    return (PyObject *)made;
}

static void mapping_free(PyObject *self)
{
    mapping_t *mapping = (mapping_t *)self;
    PyTypeObject *type = Py_TYPE(self);
    munmap(mapping->content, (size_t)mapping->size);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int mapping_buffer(PyObject *self, Py_buffer *view, int flags)
{
    mapping_t *mapping = (mapping_t *)self;
    return PyBuffer_FillInfo(view, self, mapping->content, mapping->size, 1, flags);
}

static PyObject *mapping_release(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    mapping_t *mapping = (mapping_t *)self;
    if (madvise(mapping->content, (size_t)mapping->size, MADV_DONTNEED) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef mapping_methods[] = {
    {"release", mapping_release, METH_NOARGS, "Make no page resident; they come back from the file."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "Mapping(descriptor)\n--\n\nA whole file, to be read; raises OSError."},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_free},
    {Py_tp_methods, mapping_methods},
    {Py_bf_getbuffer, mapping_buffer},
    {0, NULL},
};

static PyType_Spec mapping_spec = {
    "agent.repository._table.Mapping", sizeof(mapping_t), 0, Py_TPFLAGS_DEFAULT, mapping_slots};

static int fill_module(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&mapping_spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Mapping", type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "_table",
                                        .m_methods = methods,
                                        .m_slots = module_slots};

PyMODINIT_FUNC PyInit__table(void) { return PyModuleDef_Init(&definition); }
