//! Pure placement for local storage.
