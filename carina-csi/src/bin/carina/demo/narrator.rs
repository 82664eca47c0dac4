//! Who tells the demo's story: as text while it goes on, or as one JSON document at its end.

use std::fmt::Display;
use std::io::{self, IsTerminal};

use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, Format};

/// The story, chapter by chapter.
pub struct Narrator {
    format: Format,
    bold: bool,
    chapters: Vec<Chapter>,
}

#[derive(Debug, Serialize)]
struct Chapter {
    title: String,
    lines: Vec<String>,
}

impl Narrator {
    /// A story in this form.
    pub fn new(format: Format) -> Self {
        Self { format, bold: io::stdout().is_terminal(), chapters: Vec::new() }
    }

    /// Begins a chapter.
    pub fn chapter(&mut self, title: &str) -> Result<(), Failure> {
        let number = self.chapters.len() + 1;
        self.chapters.push(Chapter { title: title.to_owned(), lines: Vec::new() });
        let (bold, plain) = if self.bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.tell(&format!("\n{bold}{number}. {title}{plain}"))
    }

    /// Tells what happened; may be several lines.
    pub fn say(&mut self, text: impl Display) -> Result<(), Failure> {
        let text = text.to_string();
        let lines = text.trim_end().lines();
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.lines.extend(lines.clone().map(str::to_owned));
        }
        self.tell(&lines.map(|line| format!("   {line}")).collect::<Vec<_>>().join("\n"))
    }

    /// Ends the story.
    pub fn end(&self) -> Result<(), Failure> {
        match self.format {
            Format::Table => Ok(()),
            Format::Json => output::show(self.format, self.chapters.as_slice(), |_| String::new()),
        }
    }

    fn tell(&self, text: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table => output::print(text),
            Format::Json => Ok(()),
        }
    }
}
