//! From the server's greeting to the export, as bytes.
//!
//! ```text
//!   greeting -> [STARTTLS -> TLS] -> STRUCTURED_REPLY -> GO ------------------> export
//!                                                         `- unknown -> EXPORT_NAME -^
//! ```
//!
//! The machine says how many bytes it wants, is given exactly these, and says what to send; so
//! nothing that came before TLS can be mistaken for something said under it. Awkward cases: a server
//! without the fixed newstyle closes the connection instead of refusing; one that knows no GO is
//! asked the old way; replies to an option may go on for ever, so they are counted.

use super::wire::shown;
use super::{BLOCK_BYTES_MIN, REQUEST_BYTES_MAX};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const NEW_STYLE: u64 = 0x4948_4156_454f_5054;
const OLD_STYLE: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

const GREETING_BYTES: usize = 18;
const REPLY_BYTES: usize = 20;
/// Strings have 4096 bytes at most; nothing we ask for is answered with more than one and change.
const REPLY_PAYLOAD_MAX: u32 = 8192;
/// Replies to all options together; a real server sends about five.
const REPLIES_MAX: u32 = 64;
const NO_ZEROES_BYTES: usize = 10;
const ZEROES_BYTES: usize = 124;

const FIXED: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_STARTTLS: u32 = 5;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_IS_ERROR: u32 = 1 << 31;
const ERR_UNSUPPORTED: u32 = REP_IS_ERROR + 1;
const ERR_TLS_REQUIRED: u32 = REP_IS_ERROR + 5;
const ERR_UNKNOWN: u32 = REP_IS_ERROR + 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// The protocol's default for a server that says nothing.
const REQUEST_BYTES_DEFAULT: u32 = 32 << 20;
/// By the protocol, the largest a server may ask for.
const BLOCK_BYTES_MAX: u32 = 64 << 10;

/// What the server said about the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) block_min: u32,
    pub(crate) request_max: u32,
    pub(crate) structured: bool,
}

impl Export {
    pub(crate) fn read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    pub(crate) fn can_flush(&self) -> bool {
        self.flags & 4 != 0
    }

    pub(crate) fn multi_conn(&self) -> bool {
        self.flags & 256 != 0
    }

    /// The smallest unit we ask for.
    pub(crate) fn block(&self) -> u32 {
        self.block_min.max(BLOCK_BYTES_MIN)
    }

    /// What goes into one request.
    pub(crate) fn piece(&self) -> usize {
        let (block, most) = (self.block(), self.request_max.min(REQUEST_BYTES_MAX));
        (most / block * block).max(block) as usize
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("what listens there is no NBD server; check host, port or socket")]
    NotNbd,
    #[error("the server speaks the old style of the protocol, without names of exports; update it")]
    OldStyle,
    #[error("no export {export:?} there{}; list them with `nbdinfo --list`", more(message))]
    NoExport { export: String, message: String },
    #[error("the server wants TLS; write nbds:// and tls-certificates=DIR")]
    TlsRequired,
    #[error(
        "the server offers no TLS{}; nothing is sent in the clear: set it up there, or write nbd://",
        more(message)
    )]
    NoTls { message: String },
    #[error("the server refuses {what} (error {code}){}; its log may say why", more(message))]
    Refused { what: &'static str, code: u32, message: String },
    #[error("the server breaks the protocol: {what}; check what listens there")]
    Broken { what: String },
    #[error("the server closed the connection {when}; its log may say why")]
    Closed { when: &'static str },
}

fn more(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn broken(what: impl Into<String>) -> HandshakeError {
    HandshakeError::Broken { what: what.into() }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Give it the bytes it wants next.
    More,
    Send(Vec<u8>),
    /// Speak TLS from here on, then [`Handshake::secured`].
    StartTls,
    Done(Export),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    StartTls,
    Structured,
    Go,
    ExportName,
}

#[derive(Debug)]
pub(crate) struct Handshake {
    name: String,
    tls: bool,
    stage: Stage,
    no_zeroes: bool,
    /// Kind and length of the option reply whose payload is wanted.
    reply: Option<(u32, u32)>,
    replies: u32,
    structured: bool,
    size_and_flags: Option<(u64, u16)>,
    blocks: Option<(u32, u32)>,
}

fn number<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut b = NEW_STYLE.to_be_bytes().to_vec();
    b.extend(option.to_be_bytes());
    b.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    b.extend(data);
    b
}

impl Handshake {
    pub(crate) fn new(export: &str, tls: bool) -> Self {
        Self {
            name: export.to_owned(),
            tls,
            stage: Stage::Greeting,
            no_zeroes: false,
            reply: None,
            replies: 0,
            structured: false,
            size_and_flags: None,
            blocks: None,
        }
    }

    /// How many bytes of the server it must be given next.
    pub(crate) fn wants(&self) -> usize {
        match (self.stage, self.reply) {
            (Stage::Greeting, _) => GREETING_BYTES,
            (Stage::ExportName, _) if self.no_zeroes => NO_ZEROES_BYTES,
            (Stage::ExportName, _) => NO_ZEROES_BYTES + ZEROES_BYTES,
            (_, None) => REPLY_BYTES,
            (_, Some((_, len))) => len as usize,
        }
    }

    /// What it means that the server closed the connection now.
    pub(crate) fn closed(&self) -> HandshakeError {
        let when = match self.stage {
            Stage::Greeting => "before it said anything",
            Stage::StartTls => "when asked for TLS",
            Stage::Structured | Stage::Go => "when asked for the export",
            Stage::ExportName => {
                return HandshakeError::NoExport {
                    export: self.name.clone(),
                    message: "it closed the connection".into(),
                };
            }
        };
        HandshakeError::Closed { when }
    }

    /// TLS is up: everything from here on is under it.
    pub(crate) fn secured(&mut self) -> Step {
        self.stage = Stage::Structured;
        Step::Send(option(OPT_STRUCTURED, b""))
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Step, HandshakeError> {
        match (self.stage, self.reply.take()) {
            (Stage::Greeting, _) => self.greeting(bytes),
            (Stage::ExportName, _) => {
                self.size_and_flags = Some((
                    u64::from_be_bytes(number(bytes, 0)),
                    u16::from_be_bytes(number(bytes, 8)),
                ));
                self.done()
            }
            (_, None) => self.reply_head(bytes),
            (_, Some((kind, _))) => self.reply(kind, bytes),
        }
    }

    fn greeting(&mut self, b: &[u8]) -> Result<Step, HandshakeError> {
        if u64::from_be_bytes(number(b, 0)) != MAGIC {
            return Err(HandshakeError::NotNbd);
        }
        match u64::from_be_bytes(number(b, 8)) {
            NEW_STYLE => {}
            OLD_STYLE => return Err(HandshakeError::OldStyle),
            _ => return Err(HandshakeError::NotNbd),
        }
        let ours = u16::from_be_bytes(number(b, 16)) & (FIXED | NO_ZEROES);
        self.no_zeroes = ours & NO_ZEROES != 0;
        let mut send = u32::from(ours).to_be_bytes().to_vec();
        if self.tls {
            if ours & FIXED == 0 {
                return Err(HandshakeError::NoTls { message: "its protocol is too old".into() });
            }
            self.stage = Stage::StartTls;
            send.extend(option(OPT_STARTTLS, b""));
        } else if ours & FIXED != 0 {
            self.stage = Stage::Structured;
            send.extend(option(OPT_STRUCTURED, b""));
        } else {
            self.stage = Stage::ExportName;
            send.extend(option(OPT_EXPORT_NAME, self.name.as_bytes()));
        }
        Ok(Step::Send(send))
    }

    fn reply_head(&mut self, b: &[u8]) -> Result<Step, HandshakeError> {
        if u64::from_be_bytes(number(b, 0)) != OPTION_REPLY {
            return Err(broken("what answers an option is no answer"));
        }
        let asked = match self.stage {
            Stage::StartTls => OPT_STARTTLS,
            Stage::Structured => OPT_STRUCTURED,
            _ => OPT_GO,
        };
        let about = u32::from_be_bytes(number(b, 8));
        if about != asked {
            return Err(broken(format!("it answers option {about} instead of {asked}")));
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(broken(format!("more than {REPLIES_MAX} answers")));
        }
        let (kind, len) = (u32::from_be_bytes(number(b, 12)), u32::from_be_bytes(number(b, 16)));
        if len > REPLY_PAYLOAD_MAX {
            return Err(broken(format!("an answer of {len} bytes")));
        }
        if len == 0 {
            return self.reply(kind, b"");
        }
        self.reply = Some((kind, len));
        Ok(Step::More)
    }

    fn reply(&mut self, kind: u32, payload: &[u8]) -> Result<Step, HandshakeError> {
        let message = || shown(payload);
        match (self.stage, kind) {
            (Stage::StartTls, REP_ACK) => Ok(Step::StartTls),
            (Stage::StartTls, k) if k & REP_IS_ERROR != 0 => {
                Err(HandshakeError::NoTls { message: message() })
            }
            (_, ERR_TLS_REQUIRED) => Err(HandshakeError::TlsRequired),
            (Stage::Structured, k) if k == REP_ACK || k & REP_IS_ERROR != 0 => {
                self.structured = kind == REP_ACK;
                self.stage = Stage::Go;
                let mut data = u32::try_from(self.name.len()).unwrap_or(0).to_be_bytes().to_vec();
                data.extend(self.name.as_bytes());
                data.extend(1u16.to_be_bytes());
                data.extend(INFO_BLOCK_SIZE.to_be_bytes());
                Ok(Step::Send(option(OPT_GO, &data)))
            }
            (Stage::Go, REP_INFO) => self.info(payload),
            (Stage::Go, REP_ACK) => self.done(),
            (Stage::Go, ERR_UNSUPPORTED) => {
                self.stage = Stage::ExportName;
                Ok(Step::Send(option(OPT_EXPORT_NAME, self.name.as_bytes())))
            }
            (Stage::Go, ERR_UNKNOWN) => {
                Err(HandshakeError::NoExport { export: self.name.clone(), message: message() })
            }
            (Stage::Go, k) if k & REP_IS_ERROR != 0 => Err(HandshakeError::Refused {
                what: "the export",
                code: k & !REP_IS_ERROR,
                message: message(),
            }),
            _ => Err(broken(format!("an answer of the unknown type {kind:#x}"))),
        }
    }

    fn info(&mut self, b: &[u8]) -> Result<Step, HandshakeError> {
        match (b.len(), u16::from_be_bytes(number(b, 0))) {
            (0 | 1, _) => return Err(broken("an information without a type")),
            (12, INFO_EXPORT) => {
                self.size_and_flags =
                    Some((u64::from_be_bytes(number(b, 2)), u16::from_be_bytes(number(b, 10))));
            }
            (14, INFO_BLOCK_SIZE) => {
                self.blocks =
                    Some((u32::from_be_bytes(number(b, 2)), u32::from_be_bytes(number(b, 10))));
            }
            (len, what @ (INFO_EXPORT | INFO_BLOCK_SIZE)) => {
                return Err(broken(format!("an information of type {what} with {len} bytes")));
            }
            // We did not ask; a server may tell all the same.
            _ => {}
        }
        Ok(Step::More)
    }

    fn done(&mut self) -> Result<Step, HandshakeError> {
        let (size, flags) =
            self.size_and_flags.ok_or_else(|| broken("it does not say how large the export is"))?;
        let (block_min, request_max) = self.blocks.unwrap_or((1, REQUEST_BYTES_DEFAULT));
        if !block_min.is_power_of_two() || block_min > BLOCK_BYTES_MAX || request_max < block_min {
            return Err(broken(format!("blocks of {block_min} to {request_max} bytes")));
        }
        if size > i64::MAX as u64 {
            return Err(broken(format!("an export of {size} bytes")));
        }
        let structured = self.structured;
        Ok(Step::Done(Export { size, flags, block_min, request_max, structured }))
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
