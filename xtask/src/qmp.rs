//! QEMU's machine protocol: one JSON object a line, both ways.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// How long QEMU may take for an answer; the machine may be busy.
const ANSWER: Duration = Duration::from_secs(30);

/// A message from QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    /// The first one: QEMU introduces itself.
    Greeting,
    /// The command was done, with this to say.
    Return(Value),
    /// The command was refused, for this reason.
    Refused(String),
    /// Something happened.
    Event(Event),
}

/// Something that happened in the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What, as QEMU names it: `DEVICE_DELETED`.
    pub name: String,
    /// The details.
    pub data: Value,
}

fn parse_message(line: &[u8]) -> Result<Message> {
    let message: Value = serde_json::from_slice(line).context("QEMU sent no JSON")?;
    if let Some(name) = message["event"].as_str() {
        return Ok(Message::Event(Event { name: name.to_owned(), data: message["data"].clone() }));
    }
    if let Some(answer) = message.get("return") {
        return Ok(Message::Return(answer.clone()));
    }
    if let Some(error) = message.get("error") {
        let reason = error["desc"].as_str().unwrap_or("no reason given");
        return Ok(Message::Refused(reason.to_owned()));
    }
    if message.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    Err(Error::new(format!("QEMU sent an unknown message: {message}")))
}

/// Bytes from a stream, cut into lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its end; empty lines are passed over.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
            let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: Lines,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Greets the QEMU at the other end of `stream`.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { stream, lines: Lines::default(), events: VecDeque::new() };
        let deadline = Instant::now() + ANSWER;
        while qmp.receive(deadline)? != Message::Greeting {}
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Has QEMU do something, and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{request}\n").as_bytes()).context(format_args!("asking QEMU for {command}"))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            match self.receive(deadline)? {
                Message::Return(answer) => return Ok(answer),
                Message::Refused(reason) => {
                    return Err(Error::new(format!("QEMU refused {command}: {reason}")));
                }
                Message::Event(event) => self.events.push_back(event),
                Message::Greeting => {}
            }
        }
    }

    /// Forgets what happened so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Waits for an event, passing over others.
    pub fn wait_for(&mut self, timeout: Duration, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + timeout;
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Ok(event);
                }
            }
            if let Message::Event(event) = self.receive(deadline)? {
                self.events.push_back(event);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(line) = self.lines.next() {
                return parse_message(&line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new("QEMU did not answer in time"));
            }
            self.stream.set_read_timeout(Some(left)).context("waiting for QEMU")?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Error::new("QEMU is gone")),
                Ok(count) => self.lines.push(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error).context("reading from QEMU"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let message = |text: &str| parse_message(text.as_bytes()).unwrap();
        assert_eq!(message(r#"{"QMP": {"version": {}}}"#), Message::Greeting);
        assert_eq!(message(r#"{"return": {}}"#), Message::Return(json!({})));
        assert_eq!(
            message(r#"{"error": {"class": "GenericError", "desc": "no such disk"}}"#),
            Message::Refused("no such disk".into())
        );
        assert_eq!(
            message(r#"{"event": "DEVICE_DELETED", "data": {"device": "disk1"}, "timestamp": {}}"#),
            Message::Event(Event { name: "DEVICE_DELETED".into(), data: json!({ "device": "disk1" }) })
        );
        assert!(parse_message(b"{}").is_err());
        assert!(parse_message(b"hello").is_err());
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::default();
        lines.push(b"{\"a\"");
        assert_eq!(lines.next(), None);
        lines.push(b": 1}\r\n\r\n{\"b\": 2}\n{");
        assert_eq!(lines.next().unwrap(), b"{\"a\": 1}");
        assert_eq!(lines.next().unwrap(), b"{\"b\": 2}");
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn events_between_command_and_answer_are_kept() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = theirs.try_clone().unwrap();
        qemu.write_all(
            b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n\
              {\"event\": \"RESUME\"}\r\n{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d\"}}\r\n\
              {\"return\": {\"status\": \"running\"}}\r\n{\"error\": {\"desc\": \"no\"}}\r\n",
        )
        .unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        let answer = qmp.execute("query-status", json!({})).unwrap();
        assert_eq!(answer["status"], "running");
        let event = qmp.wait_for(Duration::from_secs(1), |event| event.name == "DEVICE_DELETED").unwrap();
        assert_eq!(event.data["device"], "d");
        let refused = qmp.execute("quit", json!({})).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refused quit: no");
        assert!(qmp.wait_for(Duration::from_millis(10), |_| true).is_err());
        drop((qemu, theirs));
    }
}
