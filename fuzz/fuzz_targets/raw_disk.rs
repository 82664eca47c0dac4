//! A disk of ours that somebody else has written to: its table, its record, both copies.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| carina_raw::fuzzing::patched_disk(data));
