//! The nodes by name: a scheduler names thousands in each question.
//!
//! The names lie one after another. Each in an allocation of its own would be in a page of its own, for what is
//! known of the node lies between them, and a look-up of 5,000 would wait for memory more than for all else.

use hashbrown::HashTable;

use crate::tie;

/// Where a node is: its index, and its place on the ring, so that a look-up by name needn't follow it.
#[derive(Debug, Clone, Copy)]
pub struct Located {
    pub index: u32,
    pub ring: u64,
    /// Where its name begins and ends.
    name: (usize, usize),
}

/// The nodes by name.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// By place on the ring, which is a hash of the name.
    table: HashTable<Located>,
    text: String,
    /// How many bytes of the text belong to names that are gone.
    gone: usize,
}

impl Names {
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The names, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.table.iter().map(|located| text(&self.text, located))
    }

    pub fn get(&self, name: &str) -> Option<Located> {
        let (ring, all) = (tie::place_on_ring(name), &self.text);
        self.table.find(ring, |there| there.ring == ring && text(all, there) == name).copied()
    }

    /// Takes in a name that isn't there.
    pub fn insert(&mut self, name: &str, index: u32) {
        if self.gone > self.text.len() / 2 {
            self.tidy();
        }
        let begin = self.text.len();
        self.text.push_str(name);
        let located = Located { index, ring: tie::place_on_ring(name), name: (begin, self.text.len()) };
        self.table.insert_unique(located.ring, located, |there| there.ring);
    }

    pub fn remove(&mut self, name: &str) {
        let (ring, all) = (tie::place_on_ring(name), &self.text);
        if let Ok(there) = self.table.find_entry(ring, |there| there.ring == ring && text(all, there) == name) {
            there.remove();
            self.gone += name.len();
        }
    }

    /// Leaves the names out that are gone.
    fn tidy(&mut self) {
        let mut tidied = String::with_capacity(self.text.len() - self.gone);
        for located in &mut self.table {
            let begin = tidied.len();
            tidied.push_str(text(&self.text, located));
            located.name = (begin, tidied.len());
        }
        (self.text, self.gone) = (tidied, 0);
    }
}

/// The name of a node.
fn text<'t>(all: &'t str, located: &Located) -> &'t str {
    let (from, to) = located.name;
    all.get(from..to).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a map does, whatever comes and goes.
        #[test]
        fn what_comes_and_goes_is_found(steps in prop::collection::vec((0u32..40, any::<bool>()), 0..400)) {
            let (mut names, mut model) = (Names::default(), BTreeMap::new());
            for (i, (node, there)) in (0u32..).zip(steps) {
                let name = format!("node-{node}.example");
                names.remove(&name);
                model.remove(&name);
                if there {
                    names.insert(&name, i);
                    model.insert(name, i);
                    prop_assert!(names.text.len() <= 2 * model.keys().map(String::len).sum::<usize>() + 64);
                }
                prop_assert_eq!(names.len(), model.len());
            }
            let mut found: Vec<&str> = names.iter().collect();
            found.sort_unstable();
            prop_assert_eq!(found, model.keys().map(String::as_str).collect::<Vec<_>>());
            for node in 0..40 {
                let name = format!("node-{node}.example");
                prop_assert_eq!(names.get(&name).map(|located| located.index), model.get(&name).copied());
            }
        }
    }
}
