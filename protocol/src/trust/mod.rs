//! TUF (in progress)
