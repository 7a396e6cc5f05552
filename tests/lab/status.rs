//! What a daemon says about itself. Reading it checks the books: nothing may be unaccounted for.

use serde_json::Value;

pub(crate) struct Status(Value);

impl Status {
    /// Takes the JSON of `status --json`. An answer that does not balance is an error of the
    /// daemon's bookkeeping, so it panics rather than being asked again.
    pub(crate) fn parse(text: &str, whose: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("{whose}: {error} in: {text}"))?;
        let status = Self(value);
        status.check_balances(whose);
        Ok(status)
    }

    pub(crate) fn json(&self) -> &Value {
        &self.0
    }

    pub(crate) fn realtime(&self) -> bool {
        self.0["node"]["realtime"].as_bool().expect("node.realtime is a bool")
    }

    pub(crate) fn state(&self, peer: usize) -> &str {
        self.text(peer, "/state")
    }

    pub(crate) fn route(&self, peer: usize) -> &str {
        self.text(peer, "/route")
    }

    pub(crate) fn network(&self, peer: usize) -> &str {
        self.text(peer, "/network/state")
    }

    pub(crate) fn storage(&self, peer: usize) -> &str {
        self.text(peer, "/storage/state")
    }

    pub(crate) fn counter(&self, peer: usize, name: &str) -> u64 {
        let counters = &self.peer(peer)["counters"];
        counters[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {counters}"))
    }

    /// Of each volume.
    pub(crate) fn write_latencies_ms(&self) -> Vec<f64> {
        let volumes = self.0["volumes"].as_array().expect("volumes is a list");
        volumes.iter().filter_map(|v| Some(v["write_latency_us"].as_f64()? / 1e3)).collect()
    }

    /// Everything this node says is wrong with its storage: (state, reason) of volumes and peers.
    pub(crate) fn storage_complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        let volumes = self.0["volumes"].as_array().expect("volumes is a list");
        let peers = self.peers();
        for (what, part) in volumes
            .iter()
            .map(|volume| ("volume", volume))
            .chain(peers.iter().map(|peer| ("storage path", &peer["storage"])))
        {
            let reason = part["reason"].as_str().unwrap_or_default();
            if part["state"] != "up" && !reason.is_empty() {
                found.push(format!("{what} {}: {reason}", part["state"]));
            }
        }
        found
    }

    /// One line for messages.
    pub(crate) fn brief(&self) -> String {
        let mut words = Vec::new();
        for peer in self.peers() {
            words.push(format!(
                "peer {} {} route {} (its {}), network {} {}, storage {} {}, queued {} held {} lost {} {}",
                peer["id"],
                peer["state"],
                peer["route"],
                peer["peer_route"],
                peer["network"]["state"],
                peer["network"]["reason"],
                peer["storage"]["state"],
                peer["storage"]["reason"],
                peer["counters"]["queued"],
                peer["counters"]["held"],
                peer["counters"]["lost"],
                peer["counters"]["lost_by_cause"],
            ));
        }
        for volume in self.0["volumes"].as_array().into_iter().flatten() {
            words.push(format!("volume {} {}", volume["state"], volume["reason"]));
        }
        words.join("; ").replace('"', "")
    }

    pub(crate) fn peer(&self, id: usize) -> &Value {
        let found = self.peers().iter().find(|peer| peer["id"].as_u64() == Some(id as u64));
        found.unwrap_or_else(|| panic!("no peer {id} in {}", self.0))
    }

    fn peers(&self) -> &Vec<Value> {
        self.0["peers"].as_array().unwrap_or_else(|| panic!("no list of peers in {}", self.0))
    }

    fn text(&self, peer: usize, pointer: &str) -> &str {
        let peer = self.peer(peer);
        let found = peer.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no text at {pointer} in {peer}"))
    }

    fn check_balances(&self, whose: &str) {
        for peer in self.peers() {
            let counters = &peer["counters"];
            let get = |name: &str| {
                counters[name]
                    .as_u64()
                    .unwrap_or_else(|| panic!("{whose}: no counter {name} in {counters}"))
            };
            let sum = |name: &str| -> u64 {
                counters[name]
                    .as_object()
                    .unwrap_or_else(|| panic!("{whose}: no causes {name} in {counters}"))
                    .values()
                    .map(|count| count.as_u64().unwrap_or_else(|| panic!("{whose}: {counters}")))
                    .sum()
            };
            let about = format!("{whose} about peer {}: {counters}", peer["id"]);
            assert_eq!(
                get("accepted"),
                get("acknowledged") + get("lost") + get("queued"),
                "accepted = acknowledged + lost + queued does not hold at {about}"
            );
            assert_eq!(
                get("arrived"),
                get("delivered") + get("dropped") + get("held"),
                "arrived = delivered + dropped + held does not hold at {about}"
            );
            assert_eq!(get("lost"), sum("lost_by_cause"), "causes of lost at {about}");
            assert_eq!(get("dropped"), sum("dropped_by_cause"), "causes of dropped at {about}");
        }
    }
}
