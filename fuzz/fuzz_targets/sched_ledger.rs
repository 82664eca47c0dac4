//! Reports and requests of any kind, played to the ledger.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| carina_sched::fuzzing::ledger(data));
