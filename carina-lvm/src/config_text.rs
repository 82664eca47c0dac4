//! The grammar of LVM's metadata text: sections, keys, numbers, strings and lists.

use std::collections::BTreeMap;

/// A section: what stands between braces, in the order of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    values: BTreeMap<String, Value>,
    sections: BTreeMap<String, Section>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

impl Section {
    /// Parses a whole text; `Err` says where it stops making sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text };
        let section = parser.section(0)?;
        match parser.peek() {
            None => Ok(section),
            Some(_) => Err(parser.problem("a closing brace too many")),
        }
    }

    /// The section of this name.
    pub fn section(&self, name: &str) -> Option<&Self> {
        self.sections.get(name)
    }

    /// The sections in it, by name.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.sections.iter().map(|(name, section)| (name.as_str(), section))
    }

    /// A number that is not negative.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Number(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The pairs of a text and a number that follow each other in a list: devices with their extents.
    pub fn pairs(&self, key: &str) -> Vec<(&str, u64)> {
        let Some(Value::List(values)) = self.values.get(key) else { return Vec::new() };
        let pairs = values.chunks_exact(2).filter_map(|pair| match pair {
            [Value::Text(text), Value::Number(number)] => Some((text.as_str(), u64::try_from(*number).ok()?)),
            _ => None,
        });
        pairs.collect()
    }

    /// The texts of a list; empty if there is none. A list of one may be written as a text alone.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        let values = match self.values.get(key) {
            Some(Value::List(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        values
            .iter()
            .filter_map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
            .collect()
    }
}

struct Parser<'a> {
    rest: &'a str,
}

/// Sections lie at most this deep in LVM's own text (group, logical volumes, volume, segment, message).
const DEPTH: usize = 16;

impl Parser<'_> {
    /// The next character that is neither white space nor a comment's.
    fn peek(&mut self) -> Option<char> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return self.rest.chars().next();
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, sign: char) -> bool {
        let there = self.peek() == Some(sign);
        if there {
            self.rest = self.rest.get(sign.len_utf8()..).unwrap_or_default();
        }
        there
    }

    fn problem(&self, what: &str) -> String {
        format!("LVM's metadata makes no sense: {what} at \"{}\"", self.rest.chars().take(40).collect::<String>())
    }

    fn section(&mut self, depth: usize) -> Result<Section, String> {
        if depth > DEPTH {
            return Err(self.problem("sections too deep"));
        }
        let mut section = Section::default();
        while !matches!(self.peek(), None | Some('}')) {
            let name = self.word()?;
            if self.take('{') {
                let inner = self.section(depth + 1)?;
                if !self.take('}') {
                    return Err(self.problem("a section without an end"));
                }
                section.sections.insert(name, inner);
            } else if self.take('=') {
                let value = self.value(0)?;
                section.values.insert(name, value);
            } else {
                return Err(self.problem("neither a value nor a section"));
            }
        }
        Ok(section)
    }

    fn word(&mut self) -> Result<String, String> {
        let end = self.rest.find(|c: char| c.is_whitespace() || "{}=[]\"#,".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(self.problem("no name"));
        }
        let word = word.to_owned();
        self.rest = rest;
        Ok(word)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if self.take('[') {
            if depth > DEPTH {
                return Err(self.problem("lists too deep"));
            }
            let mut values = Vec::new();
            while !self.take(']') {
                values.push(self.value(depth + 1)?);
                if !self.take(',') && self.peek() != Some(']') {
                    return Err(self.problem("a list without an end"));
                }
            }
            return Ok(Value::List(values));
        }
        if self.take('"') {
            return self.quoted();
        }
        self.peek();
        let word = self.word()?;
        // Numbers that don't fit (and floats, which LVM doesn't write here) are of no use to us.
        Ok(word.parse().map_or(Value::Text(word), Value::Number))
    }

    /// What follows an opening quote; a backslash takes the next sign as it is.
    fn quoted(&mut self) -> Result<Value, String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Value::Text(text));
                }
                '\\' => text.extend(chars.next().map(|(_, c)| c)),
                c => text.push(c),
            }
        }
        Err(self.problem("a quote without an end"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sections_values_lists_and_comments_are_read() {
        let text = "# Generated\nvg {\nid = \"a-b\" # comment\nseqno = 21\ntags = [\"x\", \"y=\\\"z\"]\nflags = []\n\
                    stripes = [\n\"pv0\", 0\n]\nlogical_volumes {\n\nlv-1 {\nsegment_count = 1\n}\n}\n}\nversion = 1\n";
        let root = Section::parse(text).unwrap();
        let vg = root.section("vg").unwrap();
        assert_eq!((vg.text("id"), vg.number("seqno")), (Some("a-b"), Some(21)));
        assert_eq!(vg.texts("tags"), ["x", "y=\"z"]);
        assert_eq!(vg.texts("flags"), Vec::<&str>::new());
        assert_eq!(vg.texts("stripes"), ["pv0"]);
        assert!(vg.section("logical_volumes").unwrap().section("lv-1").is_some());
        assert_eq!(root.number("version"), Some(1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let deep = "a {".repeat(100_000);
        let deep_list = format!("a = {}", "[".repeat(100_000));
        for text in ["vg {", "vg }", "a = [1", "a = \"x", "= 1", "a", "a {} }", &deep, &deep_list] {
            assert!(Section::parse(text).is_err(), "{}", &text[..text.len().min(20)]);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-z]{1,3}|[ \\n={}\\[\\],#\"\\\\]|[0-9]{1,30}|\\PC){0,60}") {
            let _ = Section::parse(&text);
        }
    }
}
