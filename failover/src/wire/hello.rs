//! Handshake messages. They share the frame's header (channel 0; its number is the sender's epoch
//! as claimed) and prove themselves: a hello by a code under the pair's static secret, the two
//! Noise messages by Noise.

/// A handshake message behind its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake<'a> {
    /// The higher id asks the lower one to initiate: its daemon has no keys yet.
    Hello {
        /// Code over header and kind.
        code: &'a [u8],
    },
    /// First message of Noise `KK`.
    Init {
        /// As `snow` wrote it.
        noise: &'a [u8],
    },
    /// Second message of Noise `KK`.
    Response {
        /// As `snow` wrote it.
        noise: &'a [u8],
    },
}

/// Length of a hello's code, bytes.
pub const CODE: usize = 16;

impl<'a> Handshake<'a> {
    /// First byte of the body.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Init { .. } => 2,
            Self::Response { .. } => 3,
        }
    }

    /// What follows the kind.
    #[must_use]
    pub const fn content(&self) -> &'a [u8] {
        match self {
            Self::Hello { code } => code,
            Self::Init { noise } | Self::Response { noise } => noise,
        }
    }

    /// Reads the body of a handshake message.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let (kind, content) = body.split_first()?;
        match kind {
            1 if content.len() == CODE => Some(Self::Hello { code: content }),
            2 => Some(Self::Init { noise: content }),
            3 => Some(Self::Response { noise: content }),
            _ => None,
        }
    }
}
