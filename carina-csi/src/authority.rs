//! Calls whose authority is the path of the socket.
//!
//! Kubelet dials plugins by the bare paths of their sockets, and Go's gRPC makes the path the `:authority`
//! of the calls: always when it looks at a registration socket, and before 1.26 on the driver's own socket
//! and on device plugins too (<https://github.com/kubernetes/kubernetes/pull/112597>). A path is no
//! authority, and the HTTP/2 library under tonic refuses such a call with PROTOCOL_ERROR. On a unix socket
//! the authority says nothing, so here it is replaced by `localhost` before the library sees it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What a connection begins with (RFC 9113, 3.4) has this many bytes.
const PREFACE: usize = 24;
/// The head of a frame (RFC 9113, 4.1), and the type that begins a call.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Larger frames are left alone; nobody may send larger ones unasked (RFC 9113, 4.2).
const LARGEST_FRAME: usize = 16 << 10;
/// The place of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// What it becomes. A shorter value is left alone: with a longer one in its table, the library could
/// drop entries (RFC 7541, 4.4) that the client still speaks of.
const LOCALHOST: &[u8] = b"localhost";

/// A connection whose calls all come to `localhost`.
pub struct Localhost<S> {
    inner: S,
    rewriter: Rewriter,
    /// What was read and rewritten, and how much of it was taken.
    ready: Vec<u8>,
    taken: usize,
}

impl<S> Localhost<S> {
    /// The calls on this connection.
    pub fn new(inner: S) -> Self {
        Self { inner, rewriter: Rewriter::new(), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Localhost<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken >= this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.take(read.filled(), &mut this.ready);
        }
        let waiting = this.ready.get(this.taken..).unwrap_or_default();
        let now = waiting.len().min(buf.remaining());
        buf.put_slice(waiting.get(..now).unwrap_or_default());
        this.taken += now;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Localhost<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Localhost<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

/// Where in the stream of frames the bytes are.
enum Rewriter {
    /// This many bytes pass as they are; a frame begins behind them.
    Passing(usize),
    /// A frame's head, and the whole frame if it begins a call, is gathered.
    Gathering(Vec<u8>),
}

impl Rewriter {
    fn new() -> Self {
        Self::Passing(PREFACE)
    }

    /// Takes what came and gives what goes on.
    fn take(&mut self, mut came: &[u8], out: &mut Vec<u8>) {
        while !came.is_empty() {
            match self {
                Self::Passing(0) => *self = Self::Gathering(Vec::with_capacity(FRAME_HEAD)),
                Self::Passing(left) => {
                    let (now, rest) = came.split_at(came.len().min(*left));
                    out.extend_from_slice(now);
                    *left -= now.len();
                    came = rest;
                }
                Self::Gathering(frame) => {
                    let wanted = wanted(frame);
                    let (now, rest) = came.split_at(came.len().min(wanted.saturating_sub(frame.len())));
                    frame.extend_from_slice(now);
                    came = rest;
                    if frame.len() < wanted || frame.len() < self::wanted(frame) {
                        continue;
                    }
                    let (length, kind, _) = head(frame);
                    if kind == HEADERS && length <= LARGEST_FRAME {
                        out.extend(rewritten(frame).as_ref().unwrap_or(frame));
                        *self = Self::Passing(0);
                    } else {
                        out.extend_from_slice(frame);
                        *self = Self::Passing(length);
                    }
                }
            }
        }
    }
}

/// The length, the type and the flags in a frame's head; zeroes while it isn't whole.
fn head(frame: &[u8]) -> (usize, u8, u8) {
    match frame {
        [a, b, c, kind, flags, _, _, _, _, ..] => {
            (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c), *kind, *flags)
        }
        _ => (0, 0, 0),
    }
}

/// How many bytes of a frame have to be there before it can go on.
fn wanted(frame: &[u8]) -> usize {
    let (length, kind, _) = head(frame);
    if kind == HEADERS && length <= LARGEST_FRAME { FRAME_HEAD + length } else { FRAME_HEAD }
}

/// A frame that begins a call, with another authority; `None` if it has none, or isn't what it should be,
/// which the library will say.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let (_, _, flags) = head(frame);
    let (fixed, mut rest) = frame.split_at_checked(FRAME_HEAD)?;
    let mut before = Vec::new();
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, behind) = rest.split_first()?;
        (padding, rest) = (usize::from(*length), behind);
        before.push(*length);
    }
    if flags & PRIORITY != 0 {
        let (priority, behind) = rest.split_at_checked(5)?;
        rest = behind;
        before.extend_from_slice(priority);
    }
    let (block, padding) = rest.split_at_checked(rest.len().checked_sub(padding)?)?;
    let block = with_localhost(block)?;
    let length = before.len() + block.len() + padding.len();
    let mut whole = u32::try_from(length).ok()?.to_be_bytes().get(1..)?.to_vec();
    whole.extend_from_slice(fixed.get(3..)?);
    for part in [&before[..], &block, padding] {
        whole.extend_from_slice(part);
    }
    Some(whole)
}

/// A header block (RFC 7541, 6) with another authority.
fn with_localhost(block: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(block.len());
    let mut rest = block;
    while let Some(first) = rest.first() {
        let start = rest;
        // The kinds of fields: by index, literal with indexing, a new size of the table, literal without.
        let (bits, literal) = match *first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let (name, behind) = number(rest, bits)?;
        rest = behind;
        if literal {
            if name == 0 {
                rest = string(rest)?.1;
            }
            let until = start.len() - rest.len();
            let (value, behind) = string(rest)?;
            rest = behind;
            if name == AUTHORITY && value.len() >= LOCALHOST.len() {
                out.extend_from_slice(start.get(..until)?);
                // Its length, in plain letters.
                out.push(u8::try_from(LOCALHOST.len()).ok()?);
                out.extend_from_slice(LOCALHOST);
                continue;
            }
        }
        out.extend_from_slice(start.get(..start.len() - rest.len())?);
    }
    Some(out)
}

/// A number in the lower bits of a byte and those behind it (RFC 7541, 5.1), and what follows it.
fn number(bytes: &[u8], bits: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*first) & most;
    if value < most {
        return Some((value, rest));
    }
    // Four more bytes are more than any frame is long.
    for shift in [0, 7, 14, 21] {
        let (next, behind) = rest.split_first()?;
        rest = behind;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// A text as it is written, in plain letters or in Huffman's code (RFC 7541, 5.2), and what follows it.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = number(bytes, 7)?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATH: &str = "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcarina.storage.io-reg.sock";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn literal(first: u8, value: &[u8]) -> Vec<u8> {
        [&[first, u8::try_from(value.len()).unwrap()], value].concat()
    }

    /// A call as Go's gRPC begins it: POST, http, a path, an authority, and a header of its own.
    fn call(authority: &[u8]) -> Vec<u8> {
        let own = [&[0x40, 2, b't', b'e'][..], &[8], b"trailers"].concat();
        [&[0x83, 0x86][..], &literal(0x44, b"/p.S/M"), &literal(0x41, authority), &own].concat()
    }

    fn through(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::new(), Vec::new());
        for part in parts {
            rewriter.take(&part, &mut out);
        }
        out
    }

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat()
    }

    #[test]
    fn a_path_becomes_localhost_and_all_else_stays() {
        let (settings, data) = (frame(4, 0, &[0; 6]), frame(0, 1, &[7; 5]));
        let sent = stream(&[settings.clone(), frame(HEADERS, 4, &call(PATH.as_bytes())), data.clone()]);
        let meant = stream(&[settings, frame(HEADERS, 4, &call(LOCALHOST)), data]);
        assert_eq!(through([sent.clone()]), meant);
        assert_eq!(through(sent.into_iter().map(|byte| vec![byte])), meant, "however it is cut");
    }

    #[test]
    fn padding_and_priority_are_kept() {
        let framed = |authority: &[u8]| {
            let payload = [&[3, 1, 2, 3, 4, 5][..], &call(authority), &[0; 3]].concat();
            stream(&[frame(HEADERS, 4 | PADDED | PRIORITY, &payload)])
        };
        assert_eq!(through([framed(PATH.as_bytes())]), framed(LOCALHOST));
    }

    #[test]
    fn what_is_no_header_block_is_left_to_the_library() {
        for block in [&[0x41][..], &[0x41, 0xff], &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x41, 90, 1]] {
            let sent = stream(&[frame(HEADERS, 4, block), frame(0, 1, &[1])]);
            assert_eq!(through([sent.clone()]), sent);
        }
        let short = stream(&[frame(HEADERS, 4, &call(b"x"))]);
        assert_eq!(through([short.clone()]), short);
        let padded = stream(&[frame(HEADERS, PADDED, &[200, 1])]);
        assert_eq!(through([padded.clone()]), padded);
    }

    proptest! {
        #[test]
        fn any_bytes_pass_without_a_panic_and_none_of_other_frames_are_lost(
            bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0usize..400,
        ) {
            let cut = cut.min(bytes.len());
            through([bytes[..cut].to_vec(), bytes[cut..].to_vec()]);
            let data = stream(&[frame(0, 0, &bytes), frame(8, 0, &[0, 0, 0, 1])]);
            prop_assert_eq!(through([data[..cut].to_vec(), data[cut..].to_vec()]), data);
        }
    }
}
