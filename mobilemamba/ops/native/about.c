/* What Python reads from the library before it calls any function. */

/* Hash of the sources it was compiled from. */
const char mobilemamba_fingerprint[] = MOBILEMAMBA_FINGERPRINT;

/* Whether its loops run in several threads. */
#ifdef _OPENMP
const int mobilemamba_openmp = 1;
#else
const int mobilemamba_openmp = 0;
#endif
