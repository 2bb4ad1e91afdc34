/* One blob: hashed, sealed, opened. Formats are those of crypto.py and pack.py; no Python here.
 *
 * Functions return 0, or a status that is not 0 and says at which step it ended.
 */
#ifndef PODLIFT_BLOB_H
#define PODLIFT_BLOB_H

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "_libraries.h"

enum { ID = 32, IV = 16, MAC = 16, OVERHEAD = IV + MAC };
enum { FAILED = 1, NOT_AUTHENTIC = 2, NOT_INFLATED = 3, ANOTHER_ID = 4, NO_ROOM = 5 };
enum { STEP = 64 << 10, LARGEST = 1 << 30 };

/* Data of this size and more is tried on samples first: compressing it in vain would cost more. */
enum { TRIED_FROM = 64 << 10, SAMPLE = 8 << 10, SAMPLES = 4 };

enum { SMALL = 128 << 10 };

/* What one thread works with; made once and used again. */
typedef struct context {
    struct context *next;
    void *counter, *block, *digest, *mac, *compress, *inflate, *xxh3;
    unsigned char mac_r[MAC];
    int level, small_level, level_now;
    unsigned char *scratch; /* of scratch_size: what was decrypted and is to be inflated */
    size_t scratch_size;
    unsigned char step_in[STEP], step_out[2 * STEP];
} context_t;

typedef struct {
    unsigned char encrypt[32], mac_k[16], mac_r[16];
    int level, small_level; /* of compression: from SMALL bytes on, and below */
} secrets_t;

static void free_context(context_t *context)
{
    if (context == NULL)
        return;
    lib.EVP_CIPHER_CTX_free(context->counter);
    lib.EVP_CIPHER_CTX_free(context->block);
    lib.EVP_MD_CTX_free(context->digest);
    lib.EVP_MAC_CTX_free(context->mac);
    lib.ZSTD_freeCCtx(context->compress);
    lib.ZSTD_freeDCtx(context->inflate);
    if (context->xxh3 != NULL)
        lib.XXH3_freeState(context->xxh3);
    free(context->scratch);
    memset(context->mac_r, 0, MAC);
    free(context);
}

static int has_all(const context_t *c)
{
    return c->counter != NULL && c->block != NULL && c->digest != NULL && c->mac != NULL &&
           c->compress != NULL && c->inflate != NULL && c->xxh3 != NULL;
}

static context_t *new_context(const secrets_t *secrets)
{
    context_t *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->counter = lib.EVP_CIPHER_CTX_new();
    c->block = lib.EVP_CIPHER_CTX_new();
    c->digest = lib.EVP_MD_CTX_new();
    c->mac = lib.EVP_MAC_CTX_new(mac_poly1305);
    c->compress = lib.ZSTD_createCCtx();
    c->inflate = lib.ZSTD_createDCtx();
    c->xxh3 = lib.XXH3_createState();
    memcpy(c->mac_r, secrets->mac_r, MAC);
    c->level = secrets->level;
    c->small_level = secrets->small_level;
    if (!has_all(c) ||
        !lib.EVP_EncryptInit_ex(c->counter, cipher_ctr, NULL, secrets->encrypt, NULL) ||
        !lib.EVP_EncryptInit_ex(c->block, cipher_block, NULL, secrets->mac_k, NULL) ||
        !lib.EVP_CIPHER_CTX_set_padding(c->block, 0)) {
        free_context(c);
        return NULL;
    }
    return c;
}

static int sha256(context_t *c, const unsigned char *data, size_t size, unsigned char *id)
{
    return lib.EVP_DigestInit_ex(c->digest, digest_sha256, NULL) &&
                   lib.EVP_DigestUpdate(c->digest, data, size) &&
                   lib.EVP_DigestFinal_ex(c->digest, id, NULL)
               ? 0
               : FAILED;
}

/* Encrypt, or decrypt, which is the same; source and target may be the same place. */
static int start_counter(context_t *c, const unsigned char *iv)
{
    return lib.EVP_EncryptInit_ex(c->counter, NULL, NULL, NULL, iv) ? 0 : FAILED;
}

static int count_on(context_t *c, unsigned char *target, const unsigned char *source, size_t size)
{
    int done = 0;
    if (size > INT_MAX || !lib.EVP_EncryptUpdate(c->counter, target, &done, source, (int)size))
        return FAILED;
    return (size_t)done == size ? 0 : FAILED;
}

/* Poly1305-AES: a one-time key of mac_r and the encrypted IV. */
static int authenticate(context_t *c, const unsigned char *iv, const unsigned char *data,
                        size_t size, unsigned char *tag)
{
    unsigned char once[2 * MAC];
    int done = 0;
    size_t length = 0;
    memcpy(once, c->mac_r, MAC);
    if (!lib.EVP_EncryptUpdate(c->block, once + MAC, &done, iv, IV) || done != IV)
        return FAILED;
    return lib.EVP_MAC_init(c->mac, once, sizeof once, NULL) &&
                   lib.EVP_MAC_update(c->mac, data, size) &&
                   lib.EVP_MAC_final(c->mac, tag, &length, MAC) && length == MAC
               ? 0
               : FAILED;
}

static int is_authentic(context_t *c, const unsigned char *sealed, size_t length)
{
    unsigned char tag[MAC], difference = 0, any = 0;
    if (authenticate(c, sealed, sealed + IV, length - OVERHEAD, tag) != 0)
        return 0;
    for (int i = 0; i < MAC; i++)
        difference |= (unsigned char)(tag[i] ^ sealed[length - MAC + (size_t)i]);
    for (int i = 0; i < IV; i++)
        any |= sealed[i];
    return difference == 0 && any != 0;
}

static size_t deflate(context_t *c, unsigned char *out, size_t room, const unsigned char *plain,
                      size_t size)
{
    int level = size < SMALL ? c->small_level : c->level;
    if (level != c->level_now)
        lib.ZSTD_CCtx_setParameter(c->compress, ZSTD_LEVEL_PARAMETER, level);
    c->level_now = level;
    return lib.ZSTD_compress2(c->compress, out, room, plain, size);
}

/* Tell from samples whether data is worth compressing. */
static int promising(context_t *c, const unsigned char *data, size_t size)
{
    if (size < TRIED_FROM)
        return 1;
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t place = (size - SAMPLE) / (SAMPLES - 1) * i;
        size_t packed = deflate(c, c->step_out, sizeof c->step_out, data + place, SAMPLE);
        if (lib.ZSTD_isError(packed) || packed < SAMPLE - SAMPLE / 50)
            return 1;
    }
    return 0;
}

/* The same as the next function for what is small: one step each, which costs a third of it. */
static int digest_of_small(context_t *c, const unsigned char *sealed, size_t size, int packed,
                           uint64_t *found)
{
    if (start_counter(c, sealed) != 0 || count_on(c, c->step_in, sealed + IV, size) != 0)
        return FAILED;
    if (!packed) {
        *found = lib.XXH3_64bits(c->step_in, size);
        return 0;
    }
    size = lib.ZSTD_decompressDCtx(c->inflate, c->step_out, sizeof c->step_out, c->step_in, size);
    if (lib.ZSTD_isError(size))
        return NOT_INFLATED;
    *found = lib.XXH3_64bits(c->step_out, size);
    return 0;
}

/* Take the XXH3 of what ``size`` bytes that follow the IV decrypt (and inflate) to. */
static int digest_of_sealed(context_t *c, const unsigned char *sealed, size_t size, int packed,
                            uint64_t *found)
{
    if (start_counter(c, sealed) != 0 || lib.XXH3_64bits_reset(c->xxh3) != 0)
        return FAILED;
    size_t left = packed ? lib.ZSTD_initDStream(c->inflate) : 0;
    for (size_t place = 0; place < size; place += STEP) {
        size_t length = size - place < STEP ? size - place : STEP;
        if (count_on(c, c->step_in, sealed + IV + place, length) != 0)
            return FAILED;
        if (!packed) {
            lib.XXH3_64bits_update(c->xxh3, c->step_in, length);
            continue;
        }
        zstd_in_t in = {c->step_in, length, 0};
        zstd_out_t out;
        do {
            out = (zstd_out_t){c->step_out, sizeof c->step_out, 0};
            left = lib.ZSTD_decompressStream(c->inflate, &out, &in);
            if (lib.ZSTD_isError(left))
                return NOT_INFLATED;
            lib.XXH3_64bits_update(c->xxh3, c->step_out, out.pos);
        } while (in.pos < in.size || (out.pos == out.size && left != 0));
    }
    *found = lib.XXH3_64bits_digest(c->xxh3);
    return packed && left != 0 ? NOT_INFLATED : 0;
}

/* As kernel.py packs what is to be sealed: a span, its XXH3, and an IV that is used once. */
typedef struct {
    uint64_t start, size, seal;
    unsigned char iv[IV];
} plain_t;

typedef struct {
    uint32_t length, plain_length;
} stored_t;

/* Seal into ``room`` bytes at ``out``, and open the result again: it must have the same XXH3. */
static int seal_blob(context_t *c, const unsigned char *plain, const plain_t *blob, int always,
                     unsigned char *out, size_t room, stored_t *stored)
{
    size_t size = blob->size, packed = size;
    if (room < OVERHEAD || size > LARGEST)
        return NO_ROOM;
    if (always || (size > 0 && promising(c, plain, size))) {
        packed = deflate(c, out + IV, room - OVERHEAD, plain, size);
        if (lib.ZSTD_isError(packed)) {
            if (always)
                return NO_ROOM;
            packed = size; /* it does not even fit where the plain bytes would */
        }
    }
    int compressed = always || packed < size;
    if (!compressed)
        packed = size;
    if (packed > room - OVERHEAD)
        return NO_ROOM;
    memcpy(out, blob->iv, IV);
    if (start_counter(c, blob->iv) != 0 ||
        count_on(c, out + IV, compressed ? out + IV : plain, packed) != 0 ||
        authenticate(c, blob->iv, out + IV, packed, out + IV + packed) != 0)
        return FAILED;
    uint64_t opened = 0;
    if (!is_authentic(c, out, packed + OVERHEAD))
        return NOT_AUTHENTIC;
    int small = packed <= sizeof c->step_in && size <= sizeof c->step_out;
    int status = (small ? digest_of_small : digest_of_sealed)(c, out, packed, compressed, &opened);
    if (status != 0)
        return status;
    stored->length = (uint32_t)(packed + OVERHEAD);
    stored->plain_length = compressed ? (uint32_t)size : 0;
    return opened == blob->seal ? 0 : ANOTHER_ID;
}

static int has_scratch(context_t *c, size_t size)
{
    if (c->scratch_size >= size)
        return 1;
    free(c->scratch);
    c->scratch = malloc(size);
    c->scratch_size = c->scratch == NULL ? 0 : size;
    return c->scratch != NULL;
}

/* Open a blob into exactly ``size`` bytes at ``out``; what is in the seal is only believed then. */
static int open_blob(context_t *c, const unsigned char *sealed, size_t length, int compressed,
                     const unsigned char *id, unsigned char *out, size_t size)
{
    if (length < OVERHEAD || !is_authentic(c, sealed, length))
        return NOT_AUTHENTIC;
    size_t packed = length - OVERHEAD;
    if (!compressed && packed != size)
        return NOT_INFLATED;
    if (compressed && !has_scratch(c, packed))
        return NO_ROOM;
    if (start_counter(c, sealed) != 0 ||
        count_on(c, compressed ? c->scratch : out, sealed + IV, packed) != 0)
        return FAILED;
    if (compressed &&
        lib.ZSTD_decompressDCtx(c->inflate, out, size, c->scratch, packed) != size)
        return NOT_INFLATED;
    unsigned char found[ID];
    if (sha256(c, out, size, found) != 0)
        return FAILED;
    return memcmp(found, id, ID) == 0 ? 0 : ANOTHER_ID;
}

#endif
