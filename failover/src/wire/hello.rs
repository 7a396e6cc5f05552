//! Handshake messages. They share the frame's header (channel 0; its number is the sender's epoch
//! as claimed). Behind it: a kind, a code under the pair's static secret over everything else, and
//! the content. The code keeps strangers from making anybody work: checking it costs a
//! microsecond, a Noise message a few hundred.

/// A handshake message behind its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake<'a> {
    /// What it is.
    pub kind: Kind,
    /// Code over header, kind and content.
    pub code: &'a [u8; CODE],
    /// What the kind says.
    pub content: &'a [u8],
}

/// Kinds of handshake messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The higher id asks the lower one to initiate: its daemon has no keys yet. No content.
    Hello = 1,
    /// The initiator's clock (u64), then the first message of Noise `KK`.
    Init = 2,
    /// Second message of Noise `KK`.
    Response = 3,
}

/// Length of a code, bytes.
pub const CODE: usize = 16;
/// Where the content begins behind the header.
pub const CONTENT: usize = 1 + CODE;

impl<'a> Handshake<'a> {
    /// Reads the body of a handshake message.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        let (code, content) = rest.split_first_chunk()?;
        let kind = match kind {
            1 if content.is_empty() => Kind::Hello,
            2 => Kind::Init,
            3 => Kind::Response,
            _ => return None,
        };
        Some(Self { kind, code, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_at_fixed_places() {
        let mut body = vec![2];
        body.extend_from_slice(&[7; CODE]);
        body.extend_from_slice(b"noise");
        let read = Handshake::read(&body).unwrap();
        assert_eq!((read.kind, read.code, read.content), (Kind::Init, &[7; CODE], &b"noise"[..]));
        body[0] = 1;
        assert_eq!(Handshake::read(&body), None, "a hello says nothing else");
        assert_eq!(Handshake::read(&body[..CONTENT]).map(|h| h.kind), Some(Kind::Hello));
        for end in 0..CONTENT {
            assert_eq!(Handshake::read(&body[..end]), None);
        }
    }
}
