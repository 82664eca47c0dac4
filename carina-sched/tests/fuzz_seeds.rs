//! The fuzz targets on their seeds, and on random bytes.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use carina_sched::fuzzing;
use carina_sched::simulator::Rng;

/// Every file of a folder of seeds; there must be some.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let files = std::fs::read_dir(&folder).unwrap();
    let seeds: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds
}

#[test]
fn the_ledger_withstands_its_seeds_and_random_bytes() {
    seeds("sched_ledger").iter().for_each(|seed| fuzzing::ledger(seed));
    let mut rng = Rng::new(1);
    for _ in 0..3_000 {
        let length = rng.below(1500);
        let bytes: Vec<u8> = (0..length).map(|_| rng.draw().to_le_bytes()[0]).collect();
        fuzzing::ledger(&bytes);
    }
}

#[test]
fn the_simulator_withstands_its_seeds_and_damaged_ones() {
    let mut rng = Rng::new(1);
    for seed in seeds("sched_trace") {
        fuzzing::trace(&seed);
        for _ in 0..200 {
            let mut damaged = seed.clone();
            let at = usize::try_from(rng.below(damaged.len() as u64)).unwrap();
            damaged[at] = b"0123456789\"{}[],:GTi-"[usize::try_from(rng.below(21)).unwrap()];
            fuzzing::trace(&damaged);
        }
    }
}
