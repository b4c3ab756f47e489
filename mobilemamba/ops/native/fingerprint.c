/* Which sources the library was compiled from; Python compares before it calls anything. */
const char mobilemamba_fingerprint[] = MOBILEMAMBA_FINGERPRINT;
