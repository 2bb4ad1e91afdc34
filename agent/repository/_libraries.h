/* The functions of other libraries that the blob kernel calls.
 *
 * Nothing is linked: a machine that builds podlift has a C compiler and no headers but Python's. The
 * libraries are the ones that the process has anyhow (Python's own libcrypto, and the extension
 * modules of the packages zstandard and xxhash, which export the C API of what they wrap), found by
 * dlopen(3). The prototypes below are the documented ones of OpenSSL 3 (EVP_*(3ssl)), of zstd.h's
 * stable part and of xxhash.h. agent/repository/kernel.py compares the first results with those of
 * the Python packages, and does not use this kernel if they differ.
 */
#ifndef PODLIFT_LIBRARIES_H
#define PODLIFT_LIBRARIES_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const void *src;
    size_t size, pos;
} zstd_in_t;

typedef struct {
    void *dst;
    size_t size, pos;
} zstd_out_t;

enum { ZSTD_LEVEL_PARAMETER = 100 }; /* ZSTD_c_compressionLevel */

static struct {
    /* libcrypto */
    void *(*EVP_CIPHER_fetch)(void *, const char *, const char *);
    void *(*EVP_CIPHER_CTX_new)(void);
    void (*EVP_CIPHER_CTX_free)(void *);
    int (*EVP_CIPHER_CTX_set_padding)(void *, int);
    int (*EVP_EncryptInit_ex)(void *, const void *, void *, const unsigned char *,
                              const unsigned char *);
    int (*EVP_EncryptUpdate)(void *, unsigned char *, int *, const unsigned char *, int);
    void *(*EVP_MD_fetch)(void *, const char *, const char *);
    void *(*EVP_MD_CTX_new)(void);
    void (*EVP_MD_CTX_free)(void *);
    int (*EVP_DigestInit_ex)(void *, const void *, void *);
    int (*EVP_DigestUpdate)(void *, const void *, size_t);
    int (*EVP_DigestFinal_ex)(void *, unsigned char *, unsigned int *);
    void *(*EVP_MAC_fetch)(void *, const char *, const char *);
    void *(*EVP_MAC_CTX_new)(void *);
    void (*EVP_MAC_CTX_free)(void *);
    int (*EVP_MAC_init)(void *, const unsigned char *, size_t, const void *);
    int (*EVP_MAC_update)(void *, const unsigned char *, size_t);
    int (*EVP_MAC_final)(void *, unsigned char *, size_t *, size_t);
    /* zstd */
    void *(*ZSTD_createCCtx)(void);
    size_t (*ZSTD_freeCCtx)(void *);
    size_t (*ZSTD_CCtx_setParameter)(void *, int, int);
    size_t (*ZSTD_compress2)(void *, void *, size_t, const void *, size_t);
    size_t (*ZSTD_compressBound)(size_t);
    void *(*ZSTD_createDCtx)(void);
    size_t (*ZSTD_freeDCtx)(void *);
    size_t (*ZSTD_decompressDCtx)(void *, void *, size_t, const void *, size_t);
    size_t (*ZSTD_initDStream)(void *);
    size_t (*ZSTD_decompressStream)(void *, zstd_out_t *, zstd_in_t *);
    unsigned (*ZSTD_isError)(size_t);
    /* xxhash */
    uint64_t (*XXH3_64bits)(const void *, size_t);
    void *(*XXH3_createState)(void);
    int (*XXH3_freeState)(void *);
    int (*XXH3_64bits_reset)(void *);
    int (*XXH3_64bits_update)(void *, const void *, size_t);
    uint64_t (*XXH3_64bits_digest)(const void *);
} lib;

static void *cipher_ctr, *cipher_block, *digest_sha256, *mac_poly1305;

typedef struct {
    const char *name;
    void **place;
} symbol_t;

#define SYMBOL(name) {#name, (void **)(void *)&lib.name}

static const symbol_t CRYPTO[] = {
    SYMBOL(EVP_CIPHER_fetch), SYMBOL(EVP_CIPHER_CTX_new), SYMBOL(EVP_CIPHER_CTX_free),
    SYMBOL(EVP_CIPHER_CTX_set_padding), SYMBOL(EVP_EncryptInit_ex), SYMBOL(EVP_EncryptUpdate),
    SYMBOL(EVP_MD_fetch), SYMBOL(EVP_MD_CTX_new), SYMBOL(EVP_MD_CTX_free),
    SYMBOL(EVP_DigestInit_ex), SYMBOL(EVP_DigestUpdate), SYMBOL(EVP_DigestFinal_ex),
    SYMBOL(EVP_MAC_fetch), SYMBOL(EVP_MAC_CTX_new), SYMBOL(EVP_MAC_CTX_free),
    SYMBOL(EVP_MAC_init), SYMBOL(EVP_MAC_update), SYMBOL(EVP_MAC_final), {NULL, NULL},
};

static const symbol_t ZSTD[] = {
    SYMBOL(ZSTD_createCCtx), SYMBOL(ZSTD_freeCCtx), SYMBOL(ZSTD_CCtx_setParameter),
    SYMBOL(ZSTD_compress2), SYMBOL(ZSTD_compressBound), SYMBOL(ZSTD_createDCtx),
    SYMBOL(ZSTD_freeDCtx), SYMBOL(ZSTD_decompressDCtx), SYMBOL(ZSTD_initDStream),
    SYMBOL(ZSTD_decompressStream), SYMBOL(ZSTD_isError), {NULL, NULL},
};

static const symbol_t XXHASH[] = {
    SYMBOL(XXH3_64bits), SYMBOL(XXH3_createState), SYMBOL(XXH3_freeState),
    SYMBOL(XXH3_64bits_reset), SYMBOL(XXH3_64bits_update), SYMBOL(XXH3_64bits_digest), {NULL, NULL},
};

/* Fill a part of the table from a library; return what is missing, or NULL. */
static const char *load_library(const char *path, const symbol_t *symbols)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* never closed: it is in use for ever */
    if (handle == NULL)
        return path;
    for (; symbols->name != NULL; symbols++) {
        *symbols->place = dlsym(handle, symbols->name);
        if (*symbols->place == NULL)
            return symbols->name;
    }
    return NULL;
}

/* Ask libcrypto for the four algorithms once; return the one that it does not have, or NULL. */
static const char *fetch_algorithms(void)
{
    if ((cipher_ctr = lib.EVP_CIPHER_fetch(NULL, "AES-256-CTR", NULL)) == NULL)
        return "AES-256-CTR";
    if ((cipher_block = lib.EVP_CIPHER_fetch(NULL, "AES-128-ECB", NULL)) == NULL)
        return "AES-128-ECB";
    if ((digest_sha256 = lib.EVP_MD_fetch(NULL, "SHA256", NULL)) == NULL)
        return "SHA256";
    if ((mac_poly1305 = lib.EVP_MAC_fetch(NULL, "POLY1305", NULL)) == NULL)
        return "POLY1305";
    return NULL;
}

#endif
