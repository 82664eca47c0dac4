//! The chores of Carina.

fn main() {}
