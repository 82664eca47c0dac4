//! Where a guest's output goes.

use std::io::{self, Write};
use std::sync::mpsc::Sender;

/// Takes what the guest prints, as it comes.
pub type Sink = Box<dyn Write + Send>;

/// A [`Sink`] that sends each line, without its end, as soon as it is whole.
pub fn line_sink(lines: Sender<String>) -> Sink {
    Box::new(LineSink { lines, rest: Vec::new() })
}

struct LineSink {
    lines: Sender<String>,
    rest: Vec<u8>,
}

impl Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            // Nobody listens any more: that is their choice.
            let _ = self.lines.send(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineSink {
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            let _ = self.lines.send(String::from_utf8_lossy(&self.rest).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn lines_are_sent_when_whole_and_the_rest_at_the_end() {
        let (sender, lines) = mpsc::channel();
        let mut sink = line_sink(sender);
        sink.write_all(b"created a\ncrea").unwrap();
        assert_eq!(lines.try_recv().unwrap(), "created a");
        assert!(lines.try_recv().is_err());
        sink.write_all(b"ted b\nlast").unwrap();
        assert_eq!(lines.try_recv().unwrap(), "created b");
        drop(sink);
        assert_eq!(lines.try_recv().unwrap(), "last");
    }
}
