//! The `carina` command, run as a person or a script would run it.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod demo;
mod machine;
mod refusals;
mod serving;
mod verbs;
