//! The `carina` command.

fn main() {}
