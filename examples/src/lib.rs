//! Carina as a library: see `examples/`, one file a question.
//!
//! - `embed`: the engine inside a program of your own.
//! - `place`: the allocator alone, without an engine.
//! - `own_placement`: a chooser of groups of your own behind the engine.
