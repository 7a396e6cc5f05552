//! What the words of a configuration may mean, and what contradicts what.
//!
//! Every function reads one section and returns what could be understood of it; contradictions
//! between sections are looked for at the end, by `contradict`.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use failover::{ClassRules, NodeId};

use super::{
    Config, DEFAULT_SOCKET, DEFAULT_STATE, HooksConfig, InterfaceConfig, NetworkConfig, NodeConfig,
    PeerConfig, SessionsConfig, StorageConfig, backup, contradict,
    file::{self, Entry, Section, Word},
    key,
    places::Places,
    replicate::{self, ReplicateWords},
    report::Report,
};

/// Everything the file says, checked as far as words alone can be.
pub(super) fn check(file: &Path, text: &str, report: &mut Report) -> Option<Config> {
    let table = file::parse(text, report);
    let syntax_broken = report.has_errors();
    let base = super::folder(file);
    let mut root = Section::root(&table);

    let node = match root.section("node", report) {
        Some(section) => node(section, &base, report),
        None if root.has("node") || syntax_broken => None,
        None => {
            report.about_file(
                "no [node] section",
                "start with [node], id = 1, name = \"alpha\", key_file = \"alpha.key\"",
            );
            None
        }
    };
    let interface_section = root.section("interface", report);
    let interface_span = interface_section.as_ref().map(|section| section.span.clone());
    let interface = interface_section.map(|section| interface(section, report));
    let network_section = root.section("network", report);
    let network = network_section.map(|section| network(section, report));
    let mut storage_section = root.section("storage", report);
    let places = Places::new(&base, storage_section.as_mut(), report);
    let storage = storage_section.map(|section| storage(section, &places, report));
    let mut copies = Vec::new();
    for section in root.sections("replicate", report) {
        copies.push(replicate::replicate(section, &places, report));
    }
    let mut peers = Vec::new();
    for section in root.sections("peer", report) {
        peers.push(peer(section, report));
    }
    let hooks = root.section("hooks", report).map(|section| hooks(section, &base, report));
    let metrics = root.section("metrics", report).and_then(|mut section| {
        let listen = section.required_text("listen", "\"127.0.0.1:9744\"", report);
        section.finish(report);
        listen.and_then(|word| socket_address(&word, "listen", report)).map(|word| word.value)
    });
    let plaintext = root.section("security", report).is_some_and(|mut section| {
        let word = section.switch("plaintext", report);
        section.finish(report);
        let Some(word) = word.filter(|word| word.value) else { return false };
        report.warning(
            word.span,
            "`plaintext = true`: everything travels unencrypted and anybody may forge it",
            "for benchmarks only; remove the line to be safe",
        );
        true
    });
    let classes = root
        .section("classes", report)
        .map_or_else(ClassRules::default, |section| classes(section, report));
    let sessions =
        root.section("sessions", report).map_or_else(SessionsConfig::default, |mut section| {
            let forward_ports = section.numbers("forward_ports", u16::MAX, report);
            section.finish(report);
            SessionsConfig { forward_ports }
        });
    let backup_store = root
        .section("backup_store", report)
        .and_then(|section| backup::backup_store(section, &base, report));
    root.finish(report);

    // Contradictions between sections.
    if network.is_none() && storage.is_none() && !syntax_broken {
        report.about_file(
            "neither [network] nor [storage]: this node could reach nobody",
            "add [network] listen = \"192.0.2.1:7440\", [storage] volume = \"/dev/...\", or both",
        );
    }
    contradict::against_node(&peers, node.as_ref(), report);
    contradict::against_each_other(&peers, report);
    if let (Some(Some(interface)), Some(span)) = (&interface, interface_span) {
        contradict::inside_interface(&peers, interface, span, report);
    }
    contradict::against_network(&peers, network.as_ref(), storage.is_some(), report);
    if let Some(Some((storage, receive))) = &storage {
        contradict::receive_names(&peers, storage, receive, report);
    }
    let sends = storage.as_ref().and_then(|s| s.as_ref()).map(|(storage, _)| storage);
    replicate::contradictions(&copies, sends, report);
    if report.has_errors() {
        return None;
    }

    Some(Config {
        source: file.to_path_buf(),
        node: node?.config,
        interface: interface.flatten().map(|word| word.value),
        network: network.flatten().map(|word| word.value),
        storage: storage.flatten().map(|(config, _)| config),
        replicate: copies.into_iter().map(ReplicateWords::config).collect::<Option<_>>()?,
        peers: peers.into_iter().map(PeerWords::config).collect::<Option<_>>()?,
        hooks: hooks.unwrap_or_default(),
        metrics,
        plaintext,
        classes,
        sessions,
        backup_store,
    })
}

pub(super) struct NodeWords {
    pub(super) config: NodeConfig,
    pub(super) id_span: Range<usize>,
    pub(super) name_span: Range<usize>,
    pub(super) public_key: Option<[u8; 32]>,
}

fn node(mut section: Section<'_, '_>, base: &Path, report: &mut Report) -> Option<NodeWords> {
    if !section.has("id") {
        section.missing("id", "1", report);
    }
    let id = node_id(&mut section, report);
    let name = section.required_text("name", "\"alpha\"", report);
    let name = name.and_then(|word| node_name(word, report));
    let group = section.text("group", report);
    let key_file = section.required_text("key_file", "\"alpha.key\"", report);
    let control_socket = section.text("control_socket", report);
    let state_dir = section.text("state_dir", report);
    section.finish(report);

    if let Some(word) = group.as_ref().filter(|word| word.value.len() > 255) {
        report.error(word.span.clone(), "`group` is longer than 255 bytes");
    }
    let mut public_key = None;
    if let Some(word) = &key_file {
        match key::read_private(&base.join(&word.value)) {
            Ok(private) => public_key = key::public_of(&private).ok(),
            Err(bad) => report.error_hint(word.span.clone(), bad.message, bad.hint),
        }
    }
    let socket = control_socket
        .as_ref()
        .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), |word| base.join(&word.value));
    // sun_path holds 108 bytes with its terminating zero.
    if let Some(word) = control_socket.filter(|_| socket.as_os_str().len() > 107) {
        report.error_hint(
            word.span,
            format!("`control_socket` is {} bytes long", socket.as_os_str().len()),
            "Linux allows 107 for a socket; choose a shorter path, for example below /run",
        );
    }
    let state_dir =
        state_dir.map_or_else(|| PathBuf::from(DEFAULT_STATE), |word| base.join(word.value));
    let (id, name, key_file) = (id?, name?, key_file?);
    Some(NodeWords {
        config: NodeConfig {
            id: id.value,
            name: name.value,
            group: group.map(|word| word.value).unwrap_or_default(),
            key_file: base.join(key_file.value),
            control_socket: socket,
            state_dir,
        },
        id_span: id.span,
        name_span: name.span,
        public_key,
    })
}

fn node_id(section: &mut Section<'_, '_>, report: &mut Report) -> Option<Word<NodeId>> {
    let word = section.number("id", report)?;
    let id = u8::try_from(word.value).ok().and_then(NodeId::new);
    if id.is_none() {
        report.error(word.span.clone(), format!("`id` is {}, but ids are 1 to 64", word.value));
    }
    id.map(|id| word.with(id))
}

fn node_name(word: Word<String>, report: &mut Report) -> Option<Word<String>> {
    let name = &word.value;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let problem = if name.is_empty() || name.len() > 63 {
        "a name has 1 to 63 characters"
    } else if !name.chars().all(good) {
        "a name is made of letters, digits, `-`, `_` and `.`"
    } else if name.chars().all(|c| c.is_ascii_digit()) {
        "a name of digits alone would be taken for an id"
    } else {
        return Some(word);
    };
    report.error(word.span, problem);
    None
}

fn interface(mut section: Section<'_, '_>, report: &mut Report) -> Option<Word<InterfaceConfig>> {
    let name = section.text("name", report);
    let address = section.required_text("address", "\"10.98.0.1/24\"", report);
    let mtu = section.number("mtu", report);
    let span = section.key_span("address");
    section.finish(report);

    let name = match name {
        None => Some("sp0".to_string()),
        Some(word) => {
            let bad = word.value.is_empty()
                || word.value.len() > 15
                || word.value == "."
                || word.value == ".."
                || word.value.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if bad {
                report.error_hint(
                    word.span,
                    format!("`{}` is no name for a network device", word.value),
                    "1 to 15 bytes without `/`, `:` and blanks, for example \"sp0\"",
                );
                None
            } else {
                Some(word.value)
            }
        }
    };
    let parsed = address.and_then(|word| interface_address(&word, report));
    let mtu = match mtu {
        None => None,
        Some(word) => {
            // RFC 791 hosts take 576; IPv6 (RFC 8200) refuses links below 1280.
            let least =
                if parsed.as_ref().is_some_and(|(ip, _)| ip.is_ipv6()) { 1280 } else { 576 };
            match u16::try_from(word.value) {
                Ok(mtu) if mtu >= least => Some(mtu),
                _ => {
                    report.error_hint(
                        word.span,
                        format!("`mtu` is {}, but must lie between {least} and 65535", word.value),
                        "leave it out: by default it is what the network path carries",
                    );
                    None
                }
            }
        }
    };
    let (address, prefix) = parsed?;
    Some(Word { value: InterfaceConfig { name: name?, address, prefix, mtu }, span })
}

fn interface_address(word: &Word<String>, report: &mut Report) -> Option<(IpAddr, u8)> {
    let example = "write address and prefix length, for example \"10.98.0.1/24\"";
    let Some((ip, prefix)) = word.value.split_once('/') else {
        let message = if word.value.parse::<IpAddr>().is_ok() {
            format!("`{}` lacks the length of its network prefix", word.value)
        } else {
            format!("`{}` is no address", word.value)
        };
        report.error_hint(word.span.clone(), message, example);
        return None;
    };
    let (Ok(ip), Ok(prefix)) = (ip.parse::<IpAddr>(), prefix.parse::<u8>()) else {
        report.error_hint(word.span.clone(), format!("`{}` is no address", word.value), example);
        return None;
    };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > bits {
        report.error(
            word.span.clone(),
            format!("prefix length {prefix}: must lie between 1 and {bits}"),
        );
        return None;
    }
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        report.error(word.span.clone(), format!("`{ip}` cannot be the address of an interface"));
        return None;
    }
    if let IpAddr::V4(v4) = ip {
        let host = v4.to_bits() & mask_v4(prefix, true);
        if prefix < 31 && (host == 0 || host == mask_v4(prefix, true)) {
            let which = if host == 0 { "the network itself" } else { "the broadcast address" };
            report.error_hint(
                word.span.clone(),
                format!("`{ip}` is {which} in a /{prefix}"),
                "choose an address between the two ends",
            );
            return None;
        }
    }
    Some((ip, prefix))
}

/// The bits of an address that name the host (or the network).
pub(super) fn mask_v4(prefix: u8, host: bool) -> u32 {
    let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    if host { host_bits } else { !host_bits }
}

fn network(mut section: Section<'_, '_>, report: &mut Report) -> Option<Word<NetworkConfig>> {
    let listen = section.required_text("listen", "\"192.0.2.1:7440\"", report);
    let heartbeat =
        section.duration("heartbeat", Duration::from_millis(1)..=Duration::from_secs(1), report);
    let hold =
        section.duration("hold", Duration::from_millis(10)..=Duration::from_secs(60), report);
    section.finish(report);
    let listen = listen.and_then(|word| socket_address(&word, "listen", report))?;
    let defaults = failover::Timing::default();
    Some(listen.with(NetworkConfig {
        listen: listen.value,
        heartbeat: heartbeat.map_or(defaults.heartbeat, |word| word.value),
        hold: hold.map_or(defaults.hold, |word| word.value),
    }))
}

fn socket_address(word: &Word<String>, key: &str, report: &mut Report) -> Option<Word<SocketAddr>> {
    let hint = "write address and port, for example \"192.0.2.1:7440\" or \"[2001:db8::1]:7440\"";
    match word.value.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(word.with(address)),
        Ok(_) => {
            report.error_hint(
                word.span.clone(),
                format!("`{key}` has port 0: peers could not know where to find it"),
                hint,
            );
            None
        }
        Err(_) => {
            let message = if word.value.parse::<IpAddr>().is_ok() {
                format!("`{}` lacks a port", word.value)
            } else {
                format!("`{}` is no address and port (names are not looked up)", word.value)
            };
            report.error_hint(word.span.clone(), message, hint);
            None
        }
    }
}

/// Peer name, as written, for each entry of `receive`.
pub(super) type ReceiveWords = Vec<Word<String>>;

fn storage(
    mut section: Section<'_, '_>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<(StorageConfig, ReceiveWords)> {
    let volume = section.text("volume", report);
    let send = section.text("send", report);
    let receive = section.section("receive", report);
    // A record is at most 1 MiB and at least one block.
    let flush_bytes = section.size("flush_bytes", 4096..=1 << 20, report);
    let flush_delay =
        section.duration("flush_delay", Duration::ZERO..=Duration::from_secs(1), report);
    let single_host = section.switch("single_host", report);

    if let (Some(_), Some(send)) = (&volume, &send) {
        report.error_hint(
            send.span.clone(),
            "both `volume` and `send`",
            "`volume` is for one shared volume; `send` and `receive` are for replicated ones",
        );
    }
    if let (Some(_), Some(receive)) = (&volume, &receive) {
        report.error_hint(
            receive.span.clone(),
            "both `volume` and `receive`",
            "with one shared `volume` everything is read from it; with replicas write `send`",
        );
    }
    if !section.has("volume") && !section.has("send") {
        section.missing("volume", "\"/dev/disk/by-id/shared-lun\"", report);
    }
    section.finish(report);

    let mut names = Vec::new();
    let mut paths = Vec::new();
    for Entry { key: name, text: path, span } in
        receive.map(|section| section.entries()).unwrap_or_default()
    {
        let Some(path) = path else {
            report.error_hint(
                span,
                format!("`receive.{}` is a path", name.value),
                "put it in \"quotes\"",
            );
            continue;
        };
        if let Some(location) = places.location(&path, report) {
            paths.push((name.value.clone(), location));
            names.push(name);
        }
    }
    let [volume, send] = [volume, send].map(|word| {
        let word = word?;
        let location = places.location(&word, report)?;
        if word.value.is_empty() {
            report.error(word.span, "an empty path");
        } else if location.path().is_some_and(|path| !path.exists()) {
            report.warning(
                word.span,
                format!("`{}` does not exist (yet)", word.value),
                "sidepath volume init formats one; the daemon waits for it",
            );
        }
        Some(location)
    });
    let send = volume.or(send)?;
    let config = StorageConfig {
        send,
        receive: paths,
        flush_bytes: flush_bytes
            .and_then(|word| usize::try_from(word.value).ok())
            .unwrap_or(64 << 10),
        flush_delay: flush_delay.map_or(Duration::from_micros(500), |word| word.value),
        single_host: single_host.is_some_and(|word| word.value),
    };
    Some((config, names))
}

pub(super) struct PeerWords {
    pub(super) id: Option<Word<NodeId>>,
    pub(super) name: Option<Word<String>>,
    pub(super) public_key: Option<Word<[u8; 32]>>,
    pub(super) endpoints: Vec<Word<SocketAddr>>,
    pub(super) address: Option<Word<IpAddr>>,
    /// Something stood where the address belongs.
    pub(super) has_address: bool,
    pub(super) has_endpoints: bool,
    pub(super) span: Range<usize>,
}

impl PeerWords {
    pub(super) fn shown(&self) -> String {
        match (&self.name, &self.id) {
            (Some(name), _) => format!("peer `{}`", name.value),
            (None, Some(id)) => format!("peer {}", id.value),
            (None, None) => "a peer".into(),
        }
    }

    fn config(self) -> Option<PeerConfig> {
        Some(PeerConfig {
            id: self.id?.value,
            name: self.name?.value,
            public_key: self.public_key?.value,
            endpoints: self.endpoints.into_iter().map(|word| word.value).collect(),
            address: self.address.map(|word| word.value),
        })
    }
}

fn peer(mut section: Section<'_, '_>, report: &mut Report) -> PeerWords {
    if !section.has("id") {
        section.missing("id", "2", report);
    }
    let id = node_id(&mut section, report);
    let name = section.required_text("name", "\"beta\"", report);
    let name = name.and_then(|word| node_name(word, report));
    let public_key =
        section.required_text("public_key", "\"...\" (sidepath keygen prints it)", report);
    let public_key = public_key.and_then(|word| match key::decode(&word.value) {
        Ok(key) => Some(word.with(key)),
        Err(why) => {
            report.error_hint(
                word.span.clone(),
                format!("`public_key`: {why}"),
                "sidepath keygen prints it on the peer's machine",
            );
            None
        }
    });
    let endpoints = section.texts("endpoints", report);
    let endpoints = endpoints.map(|word| word.value).unwrap_or_default();
    let endpoints =
        endpoints.iter().filter_map(|word| socket_address(word, "endpoints", report)).collect();
    let address = section.text("address", report).and_then(|word| {
        let parsed = word.value.parse::<IpAddr>();
        if parsed.is_err() {
            report.error_hint(
                word.span.clone(),
                format!("`{}` is no address", word.value),
                "the peer's address on the interface, without a prefix: \"10.98.0.2\"",
            );
        }
        parsed.ok().map(|ip| word.with(ip))
    });
    let (has_address, has_endpoints) = (section.has("address"), section.has("endpoints"));
    let span = section.span.clone();
    section.finish(report);
    PeerWords { id, name, public_key, endpoints, address, has_address, has_endpoints, span }
}

fn hooks(mut section: Section<'_, '_>, base: &Path, report: &mut Report) -> HooksConfig {
    let words = section.texts("on_route_change", report);
    section.finish(report);
    let Some(words) = words else { return HooksConfig::default() };
    let mut command: Vec<String> = words.value.iter().map(|word| word.value.clone()).collect();
    match words.value.first() {
        None => report.error_hint(
            words.span,
            "`on_route_change` names no program",
            "write the program and its arguments, or remove the line",
        ),
        Some(program) => {
            let path = base.join(&program.value);
            let runnable = rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok();
            if !runnable || path.is_dir() {
                report.error_hint(
                    program.span.clone(),
                    format!("`{}` is no program we may run", path.display()),
                    "a full path to an executable file; no shell is involved",
                );
            }
            command[0] = path.to_string_lossy().into_owned();
        }
    }
    HooksConfig { on_route_change: command }
}

fn classes(mut section: Section<'_, '_>, report: &mut Report) -> ClassRules {
    let default = ClassRules::default();
    let udp = section.numbers("express_udp_ports", u16::MAX, report);
    let tcp = section.numbers("express_tcp_ports", u16::MAX, report);
    let dscp = section.numbers("express_dscp", 63, report);
    let echo = section.switch("express_echo", report);
    let read = section.numbers("read_udp_ports", u16::MAX, report);
    let read_span = section.key_span("read_udp_ports");
    section.finish(report);
    let rules = ClassRules {
        express_udp_ports: udp.unwrap_or(default.express_udp_ports),
        express_tcp_ports: tcp.unwrap_or(default.express_tcp_ports),
        express_dscp: dscp.map_or(default.express_dscp, |values| {
            values.into_iter().filter_map(|value| u8::try_from(value).ok()).collect()
        }),
        express_echo: echo.map_or(default.express_echo, |word| word.value),
        read_udp_ports: read.unwrap_or(default.read_udp_ports),
    };
    if let Some(port) =
        rules.read_udp_ports.iter().find(|port| rules.express_udp_ports.contains(port))
    {
        report.error_hint(
            read_span,
            format!("UDP port {port} is both express and read"),
            "read flows are dropped on the storage path, express flows go first on it: choose",
        );
    }
    rules
}
