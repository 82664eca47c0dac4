//! Examples of Carina as a library.
