/* What Python asks of the library before it calls anything. */

/* Which sources it was compiled from. */
const char mobilemamba_fingerprint[] = MOBILEMAMBA_FINGERPRINT;

/* Whether its loops run in several threads. */
#ifdef _OPENMP
const int mobilemamba_openmp = 1;
#else
const int mobilemamba_openmp = 0;
#endif
