//! Any text as a trace of the simulator.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| carina_sched::fuzzing::trace(data));
