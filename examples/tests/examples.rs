//! Runs the examples: each checks what it shows.

#[path = "../examples/embed.rs"]
mod embed;
#[path = "../examples/own_placement.rs"]
mod own_placement;
#[path = "../examples/place.rs"]
mod place;

#[test]
fn the_engine_can_be_embedded() {
    embed::main().unwrap();
}

#[test]
fn pods_are_placed_and_refused_with_reasons() {
    place::main().unwrap();
}

#[test]
fn a_placement_of_ones_own_chooses_the_groups() {
    own_placement::main().unwrap();
}
