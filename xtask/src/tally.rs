//! Counts tests by the lines in which their harness sums them up.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// The sums seen: one a test binary or crate of doc tests.
    pub sums: u32,
    /// The tests that passed.
    pub passed: u64,
    /// The tests that failed.
    pub failed: u64,
    /// The tests that were left out by `#[ignore]`.
    pub ignored: u64,
}

impl Tally {
    /// Adds what a line of a test's output says, if it is a sum.
    fn line(&mut self, line: &str) {
        let Some(sum) = line.trim().strip_prefix("test result: ") else {
            return;
        };
        self.sums += 1;
        // "ok. 12 passed; 0 failed; 1 ignored; ..."
        let counts = sum.split_once(". ").map_or(sum, |(_, counts)| counts);
        for count in counts.split("; ") {
            let (number, what) = count.split_once(' ').unwrap_or((count, ""));
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.sums += other.sums;
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(formatter, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

/// Passes a test's output on to ours, and counts along.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<Mutex<(Tally, Vec<u8>)>>);

impl Counter {
    /// What was counted so far.
    pub fn tally(&self) -> Tally {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(bytes)?;
        let (tally, rest) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rest.extend_from_slice(bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            tally.line(&String::from_utf8_lossy(&line));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_added_up() {
        let mut tally = Tally::default();
        tally.line("test a_test ... ok\n");
        tally.line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s\n");
        tally.line("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        assert_eq!(tally.sums, 2);
        assert_eq!(tally.to_string(), "14 passed, 3 failed, 1 ignored");
    }
}
