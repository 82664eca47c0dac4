//! Benchmarks of Carina, one file a question.
