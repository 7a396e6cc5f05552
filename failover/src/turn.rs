//! The contract of the core, and the first page to read.
//!
//! ```text
//!   packet, datagram, frame from a volume,          frames for the network or a volume,
//!   beat, fact about a volume, command     ──┐  ┌──> packets for the interface, events
//!                                            │  │
//!                          turn(node, now, input, world)
//!                                            │
//!                                            └────> when to call again at the latest
//! ```
//!
//! A turn is one [`Input`] at one moment. The node answers by putting [`Output`]s into the
//! [`World`]; the caller hands over as many inputs as it has, one turn each, then asks
//! [`finish`] once: that is where acknowledgements, resends and everything that is worth doing
//! once per batch happens. `finish` returns the moment of the next timer: if nothing arrives
//! before it, call [`finish`] again then. An early or late call is never wrong, only less exact.
//!
//! The awkward cases: inputs carry the moment they *happened* where that differs from now (a beat
//! waiting in a queue is not a late beat), and a turn after a long pause first reads everything
//! that waited before it judges anybody (hand over all inputs, then finish).

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{
    NodeId, Options, Time, VolumeId,
    beat::{BeatOrder, Heard},
    event::Event,
    node::Node,
    session::{SessionEvent, SessionOrder},
};

/// What a node asks of its surroundings while it turns.
pub trait World {
    /// Fills `buffer` with random bytes fit for keys. The simulator draws them from its seed.
    fn random(&mut self, buffer: &mut [u8]);
    /// Takes one output. Never fails and never blocks: hands collect and act after the turn.
    fn put(&mut self, output: Output);
}

/// The two planes frames travel by.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// UDP datagrams and the TCP connection.
    Network,
    /// Lanes of a volume.
    Storage,
}

/// Which ring of a lane a frame goes to; readers look at the express ring first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ring {
    /// Small and urgent.
    Express,
    /// Everything else.
    Data,
}

/// One fact handed to the node.
#[derive(Debug)]
pub enum Input<'a> {
    /// A packet an application sent into the virtual interface: the ten bytes of its
    /// `virtio_net_hdr`, then the IP packet (up to 64 KiB when it is a segmentation-offload
    /// super-packet).
    Packet(&'a [u8]),
    /// A datagram from the network plane; may hold anything.
    Datagram {
        /// Its source address, used only to answer hellos.
        from: SocketAddr,
        /// The bytes as received.
        bytes: &'a [u8],
    },
    /// One frame from a TCP connection of the network plane; may hold anything.
    TcpFrame(Vec<u8>),
    /// A frame read from the lane that node `from` writes for us. `from` is where it lay, not who
    /// wrote it: identity comes from the keys alone.
    Stored {
        /// Whose lane it lay in.
        from: NodeId,
        /// The frame.
        bytes: &'a [u8],
    },
    /// What the handshake mailbox of the lane from `from` holds now.
    Mailbox {
        /// Whose lane it lay in.
        from: NodeId,
        /// The message.
        bytes: &'a [u8],
    },
    /// A beat opened by the beat engine, with the moment it came off the wire.
    Beat(Heard),
    /// A fact about a volume.
    Volume(VolumeId, VolumeFact),
    /// A fact about the network plane.
    Network(NetworkFact),
    /// What an application wants of its sessions with a peer.
    Session {
        /// With whom.
        peer: NodeId,
        /// What.
        order: SessionOrder,
    },
    /// What an operator or the daemon wants.
    Command(Command),
}

/// Facts about a volume, as the store plane reports them. Verdicts are health's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeFact {
    /// Our entry is claimed; writing may begin.
    Attached,
    /// Our own beat reached the medium.
    BeatWritten {
        /// From issue to completion.
        latency: Duration,
    },
    /// How far apart our beats and looks are from now on: a medium may not bear what was ordered.
    BeatsEvery {
        /// From one to the next.
        interval: Duration,
    },
    /// The node table was read.
    TableRead {
        /// From issue to completion.
        latency: Duration,
    },
    /// A node's entry moved on since we last read it.
    PeerBeat {
        /// Whose entry.
        node: NodeId,
        /// Its writer's incarnation on the volume.
        epoch: u64,
        /// Its beat counter.
        beat: u64,
        /// When it promised the next one.
        interval: Duration,
    },
    /// A record was written.
    RecordWritten {
        /// The lane's reader.
        to: NodeId,
        /// From issue to completion.
        latency: Duration,
    },
    /// Nothing is buffered or being written for that node any more.
    Drained {
        /// The lane's reader.
        to: NodeId,
    },
    /// Every record up to `number` in our lane from `from` was read: to be told to its writer.
    Cursor {
        /// The lane's writer.
        from: NodeId,
        /// The ring.
        ring: Ring,
        /// Last record read.
        number: u64,
    },
    /// An operation failed; the path is unusable until facts prove otherwise.
    Fault {
        /// What kind.
        fault: StorageFault,
        /// For people: operation, place, error.
        detail: String,
    },
    /// An operation is older than its deadline and still in the kernel.
    Hangs {
        /// It is a read; otherwise a write or a flush.
        reading: bool,
        /// For people.
        detail: String,
    },
    /// An operation that was reported to hang came back, whatever it brought.
    Returned {
        /// It was a read.
        reading: bool,
    },
    /// Frames put into the outbox were refused: the link's copies stay unacknowledged.
    Refused {
        /// The lane's reader.
        to: NodeId,
    },
}

/// Kinds of storage trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageFault {
    /// A read failed.
    ReadError,
    /// A write failed.
    WriteError,
    /// The medium is read-only.
    ReadOnly,
    /// The medium is full.
    Full,
    /// The medium vanished or cannot be opened.
    Gone,
    /// An operation is older than its deadline and still in the kernel, or timed out.
    Stalled,
    /// Somebody else writes under our id, or the volume is not the one we attached.
    Fenced,
    /// Not (yet) attached.
    NotAttached,
}

/// Facts about the network plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkFact {
    /// The link that leads to this peer went down (netlink), or came up.
    Link {
        /// Toward whom.
        peer: NodeId,
        /// True when it came up.
        up: bool,
    },
    /// A send was refused or an ICMP error came back. Speeds up suspicion, proves nothing.
    SendError {
        /// Toward whom.
        peer: NodeId,
        /// The operating system's words.
        detail: String,
    },
    /// Bytes one datagram to this peer may hold without fragmentation (path MTU less IP and UDP
    /// headers).
    DatagramSize {
        /// Toward whom.
        peer: NodeId,
        /// In bytes.
        bytes: usize,
    },
    /// The pipe to this peer takes so many more bytes now; none while it is not connected.
    PipeTakes {
        /// Toward whom.
        peer: NodeId,
        /// In bytes.
        bytes: usize,
    },
    /// The connection of the pipe ended, and what it had been given may be lost.
    PipeBroke {
        /// Toward whom.
        peer: NodeId,
    },
    /// Frames handed to the TCP plane were not taken (not connected, buffer full).
    TcpRefused {
        /// Toward whom.
        peer: NodeId,
    },
}

/// What may be cut by a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The network path.
    Network,
    /// The storage path.
    Storage,
    /// Both paths.
    Both,
}

/// How a ping travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// As the route says.
    Auto,
    /// By the network, whatever the route.
    Network,
    /// By storage, whatever the route.
    Storage,
}

/// What an operator or the daemon wants of the node.
#[derive(Debug, Clone)]
pub enum Command {
    /// Send one probe; the answer comes as [`Event::PingReply`].
    Ping {
        /// To whom.
        peer: NodeId,
        /// Chosen by the caller, comes back in the event.
        id: u64,
        /// By which path.
        via: Via,
    },
    /// Drop a path's traffic with one peer for a while; answered by [`Event::DrillStarted`] or
    /// [`Event::DrillRefused`]. A second order for the same peer replaces the first; a zero
    /// duration ends it.
    Drill {
        /// With whom.
        peer: NodeId,
        /// Which path.
        cut: Cut,
        /// For how long.
        length: Duration,
        /// Also when the other path is not up.
        force: bool,
    },
    /// New settings: peers are added, changed and removed, times changed.
    Configure(Box<Options>),
    /// Say goodbye to every peer over every path; the daemon is about to stop.
    Goodbye,
}

/// What the hands are to do after a turn.
#[derive(Debug, Clone)]
pub enum Output {
    /// Send a datagram.
    Datagram {
        /// To whom (for error reports and batching).
        peer: NodeId,
        /// Where to.
        to: SocketAddr,
        /// One sealed frame, or a handshake message.
        frame: Bytes,
    },
    /// Send one frame over the TCP connection to that peer.
    TcpFrame {
        /// To whom.
        peer: NodeId,
        /// One sealed frame.
        frame: Bytes,
    },
    /// Send one frame of sessions over the pipe to that peer: a TCP connection of its own, so that
    /// bulk does not stand before packets. Frames it was given arrive in order or not at all.
    Pipe {
        /// To whom.
        peer: NodeId,
        /// One sealed frame.
        frame: Bytes,
    },
    /// Put one frame into the outbox of the lane toward `to`.
    Store {
        /// On which volume.
        volume: VolumeId,
        /// The lane's reader.
        to: NodeId,
        /// Which ring.
        ring: Ring,
        /// One sealed frame.
        frame: Bytes,
    },
    /// Overwrite the handshake mailbox of the lane toward `to`.
    Mailbox {
        /// On which volume.
        volume: VolumeId,
        /// The lane's reader.
        to: NodeId,
        /// One handshake message.
        message: Bytes,
    },
    /// Tell a volume something.
    Volume(VolumeId, VolumeOrder),
    /// Write a packet to the virtual interface: ten bytes of `virtio_net_hdr`, then the packet.
    Packet(Bytes),
    /// Tell the beat engine something.
    Beat(BeatOrder),
    /// Tell an application something about its session with a peer.
    Session {
        /// With whom.
        peer: NodeId,
        /// What.
        event: SessionEvent,
    },
    /// Something worth telling people, metrics or hooks.
    Event(Event),
}

/// Orders to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeOrder {
    /// Poll lanes eagerly (a path is needed) or only with the beat (standby).
    Poll {
        /// True when traffic is expected by storage.
        active: bool,
    },
    /// How often our entry is to be written and the table read.
    BeatEvery(Duration),
    /// Write our entry and read the table at once.
    BeatNow,
    /// The reader of that lane has read every record up to `number`.
    Released {
        /// The lane's reader.
        to: NodeId,
        /// Which ring.
        ring: Ring,
        /// Last record read.
        number: u64,
    },
    /// The lane's reader is a new incarnation: whatever it had not read is void.
    ResetLane {
        /// The lane's reader.
        to: NodeId,
    },
}

/// Hands one input to the node.
pub fn turn(node: &mut Node, now: Time, input: Input<'_>, world: &mut dyn World) {
    node.handle(now, input, world);
}

/// Ends a batch of turns: sends what became ready, runs due timers, and says when the next one is
/// due. Call it after every batch of inputs and when that moment comes.
pub fn finish(node: &mut Node, now: Time, world: &mut dyn World) -> Time {
    node.finish(now, world)
}
