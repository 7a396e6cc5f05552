//! `sidepath config check` says everything that is wrong, where, and what to do.

use crate::room::Room;

/// Checks `config` after replacing `from` by `to`; the public key of beta becomes `BETA`.
#[track_caller]
fn report(room: &Room, config: &str, from: &str, to: &str) -> String {
    assert!(config.contains(from), "{from}");
    room.write("alpha.toml", &config.replacen(from, to, 1));
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
    done.stderr
}

#[test]
fn a_good_one_is_good() {
    let room = Room::new();
    room.write("alpha.toml", &room.config());
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert_eq!(done.stdout, "alpha.toml: ok, node 1 `alpha`, 1 peer, network and storage\n");
    let done = room.run(&["config", "check", "--json", "alpha.toml"]);
    assert_eq!(done.json()["valid"], true);
}

#[test]
fn a_volume_may_be_a_url_and_is_not_looked_for_as_a_file() {
    let room = Room::new();
    let config = room.config();
    for url in ["nbd://192.0.2.9/lun", "nbd+unix:///lun?socket=/run/nbd.sock"] {
        room.write("alpha.toml", &config.replace("/dev/null", url));
        let done = room.run(&["config", "check", "alpha.toml"]);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    }
}

#[test]
fn an_object_store_has_a_section_and_no_secrets() {
    let room = Room::new();
    let stored = room.config().replace("/dev/null", "s3://bucket/site");
    let with = |section: &str| format!("{stored}\n[storage.s3]\n{section}\n");
    room.write(
        "alpha.toml",
        &with(
            "endpoint = \"https://s3.example.net\"\nregion = \"eu-central-1\"\npath_style = true\n\
             ca_file = \"ca.pem\"\ncredentials_file = \"keys\"",
        ),
    );
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    for (section, named) in [
        ("endpoint = \"s3.example.net\"", "http://HOST"),
        ("endpoint = \"https://KEY:TOPSECRET@s3.example.net\"", "credentials do not belong"),
        ("region = \"EU west\"", "region"),
        ("secret_access_key = \"TOPSECRET\"", "secret_access_key"),
    ] {
        room.write("alpha.toml", &with(section));
        let done = room.run(&["config", "check", "alpha.toml"]);
        assert_eq!(done.code, 2, "{section}: {done:?}");
        assert!(done.stderr.contains(named), "{section}: {}", done.stderr);
    }
    let secret = stored.replace("s3://bucket", "s3://KEY:TOPSECRET@bucket");
    room.write("alpha.toml", &secret);
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("credentials do not belong"), "{}", done.stderr);
}

#[test]
fn every_key_of_the_design_is_accepted() {
    let room = Room::new();
    let config = room.config().replace("volume = \"/dev/null\"", "send = \"/dev/null\"");
    let config = config
        .replace("[[peer]]", "receive = { beta = \"/dev/zero\" }\nsingle_host = false\n[[peer]]");
    let config = format!(
        "{config}\n[hooks]\non_route_change = [\"/bin/true\", \"x\"]\n\
         [metrics]\nlisten = \"127.0.0.1:9744\"\n[security]\nplaintext = true\n\
         [classes]\nexpress_udp_ports = [53, \"5404-5412\"]\nexpress_tcp_ports = []\n\
         express_dscp = [46]\nexpress_echo = true\nread_udp_ports = [9]\n"
    );
    let config = config.replace("[interface]", "group = \"g\"\n[interface]\nmtu = 1400");
    room.write("alpha.toml", &config);
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("warning: `plaintext = true`"), "{done:?}");
    assert!(done.stderr.ends_with("1 warning in alpha.toml\n"), "{done:?}");
}

#[test]
fn a_misspelt_key_is_pointed_at() {
    let room = Room::new();
    let config = room.config();
    assert_eq!(
        report(&room, &config, "flush_bytes", "fush_bytes"),
        "error: unknown key `fush_bytes` in [storage]\n  \
           --> alpha.toml:19:1\n   \
            |\n\
         19 | fush_bytes = \"64KiB\"\n   \
            | ^^^^^^^^^^\n   \
            = hint: did you mean `flush_bytes`?\n\
         \n\
         1 error in alpha.toml\n"
    );
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let room = Room::new();
    let config = room.config();
    let config = config.replace("id = 1\n", "id = 65\n").replace("\"1s\"", "\"1\"");
    let text = report(&room, &config, "volume =", "volum =");
    for part in [
        "error: `id` is 65, but ids are 1 to 64\n --> alpha.toml:2:6",
        "error: `hold`: a duration needs a unit",
        "error: [storage] needs `volume`",
        "hint: did you mean `volume`?",
        "4 errors in alpha.toml\n",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn contradictions_name_both_places() {
    let room = Room::new();
    let config = room.config();
    let peer = config.find("[[peer]]").unwrap();
    let twice = format!("{config}\n{}", &config[peer..]);
    room.write("alpha.toml", &twice);
    let done = room.run(&["config", "check", "alpha.toml"]);
    for what in [
        "two peers have the id `2`",
        "two peers have the name `beta`",
        "two peers have this public key",
        "two peers have the address `10.98.0.2`",
        "two peers have the endpoint `192.0.2.2:7440`",
        "hint: the first is on line 23",
    ] {
        assert!(done.stderr.contains(what), "{what} in {}", done.stderr);
    }
    for (from, to, part) in [
        ("id = 2", "id = 1", "peer `beta` has our own id 1"),
        ("\"beta\"", "\"alpha\"", "a peer has our own name `alpha`"),
        ("\"10.98.0.2\"", "\"10.98.0.1\"", "peer `beta` has our own address 10.98.0.1"),
        ("\"10.98.0.2\"", "\"10.99.0.2\"", "10.99.0.2 lies outside of the interface's network"),
        ("192.0.2.2:7440", "[2001:db8::2]:7440", "one is IPv4, the other IPv6"),
        ("volume =", "send = \"a\"\nvolume =", "both `volume` and `send`"),
        ("volume =", "receive = { bta = \"r\" }\nsend =", "no peer is named `bta`"),
        ("volume =", "receive = { beta = \"/dev/null\" }\nsend =", "is read from the volume we"),
        ("\"/dev/null\"", "\"gs://b/v\"", "`gs://` is not known here"),
        ("\"/dev/null\"", "\"nbd://h:0/v\"", "`0` is no port"),
        ("\"/dev/null\"", "\"nbds://h/v\"", "add ?tls-certificates=DIR"),
        ("10.98.0.1/24", "10.98.0.0/24", "`10.98.0.0` is the network itself in a /24"),
        ("10.98.0.1/24", "10.98.0.1", "`10.98.0.1` lacks the length of its network prefix"),
        ("name = \"sp0\"", "mtu = 500", "`mtu` is 500, but must lie between 576 and 65535"),
        ("\"sp0\"", "\"a-name-far-too-long\"", "is no name for a network device"),
        ("192.0.2.1:7440", "192.0.2.1", "`192.0.2.1` lacks a port"),
        ("192.0.2.1:7440", "alpha:7440", "(names are not looked up)"),
        ("\"10ms\"", "\"1m\"", "`heartbeat` is 60s, but must lie between 1ms and 1s"),
        ("64KiB", "64KB", "did you mean `KiB`"),
        ("id = 1", "id = \"1\"", "`id` is a whole number, not a text"),
        ("[network]", "[netwrk]", "did you mean `network`?"),
    ] {
        let text = report(&room, &config, from, to);
        assert!(text.contains(part), "{from} -> {to}: {text}");
    }
}

#[test]
fn replicas_are_checked_like_everything_else() {
    let room = Room::new();
    let config = room.config().replace("volume = \"/dev/null\"", "send = \"/dev/null\"");
    let good = "[[replicate]]\nfrom = \"/dev/null\"\nto = \"b\"\n";
    let all = format!(
        "{config}\n{good}limit = \"100MiB\"\n\
         [[replicate]]\nfrom = \"/dev/null\"\nto = \"nbd://192.0.2.9/b\"\n\
         mode = \"interval\"\ninterval = \"30s\"\n\
         [[replicate]]\nfrom = \"nbd://192.0.2.9/c\"\nto = \"c\"\nmode = \"on-command\"\n\
         [[replicate]]\nfrom = \"c2\"\nto = \"d\"\nmode = \"continuous\"\n"
    );
    room.write("alpha.toml", &all);
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let both = format!("{config}\n{good}{good}");
    for (to, part) in [
        (good.replace("from", "form"), "unknown key `form` in [[replicate]] number 1"),
        (good.replace("from = \"/dev/null\"\n", ""), "[[replicate]] number 1 needs `from`"),
        (good.replace("\"b\"", "\"\""), "an empty path"),
        (good.replace("\"b\"", "\"gs://b\""), "`gs://` is not known here"),
        (good.replace("\"/dev/null\"", "\"./b\""), "a replica needs a medium of its own"),
        (good.replace("\"b\"", "\"/dev/null\""), "`to` is the same place as `from`"),
        (
            good.replace("\"/dev/null\"", "\"a\"").replace("\"b\"", "\"/dev/null\""),
            "`to` is the volume we send on",
        ),
        (format!("{good}{good}"), "two [[replicate]] write to this place"),
        (
            format!("{good}{}", good.replace("\"b\"", "\"c\"").replace("/dev/null", "b")),
            "a replica of a replica",
        ),
        (format!("{good}mode = \"intervall\"\n"), "did you mean \"interval\"?"),
        (format!("{good}mode = \"x\"\n"), "modes are \"continuous\", \"interval\""),
        (format!("{good}mode = \"interval\"\n"), "number 1 needs `interval`"),
        (format!("{good}interval = \"3s\"\n"), "`interval` in mode \"continuous\""),
        (format!("{good}mode = \"interval\"\ninterval = \"1ms\"\n"), "between 10ms and"),
        (format!("{good}limit = \"1KiB\"\n"), "`limit` is 1KiB, but must lie between 4KiB"),
    ] {
        // `./b` and `b` are one file only where it exists.
        room.write("b", "");
        let text = report(&room, &both, &format!("{good}{good}"), &to);
        assert!(text.contains(part), "{to}: {text}");
    }
    let text = report(&room, &both, "flush_bytes", "flush_bytes");
    assert!(text.contains("hint: a replica has one original; the first is on line"), "{text}");
}

#[test]
fn a_store_of_backups_is_checked_like_everything_else() {
    let room = Room::new();
    let config = room.config();
    let good = "[backup_store]\npath = \"backups\"\n";
    let all = format!("{config}\n{good}service = \"nightly\"\nkeep = 7\nkeep_within = \"720h\"\n");
    room.write("alpha.toml", &all);
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    let line = config.lines().count() + 2;
    let with = format!("{config}\n{good}");
    for (to, at, part) in [
        (good.replace("path", "pth"), 1, "did you mean `path`?"),
        ("[backup_store]\n".into(), 0, "[backup_store] needs `path`"),
        ("[backup_stor]\npath = \"x\"\n".into(), 0, "did you mean `backup_store`?"),
        (good.replace("backups", ""), 1, "an empty path"),
        (good.replace("\"backups\"", "7"), 1, "`path` is a text"),
        (format!("{good}keep = 0\n"), 2, "`keep` is how many versions of each name stay"),
        (format!("{good}keep = -1\n"), 2, "`keep`"),
        (format!("{good}keep = \"all\"\n"), 2, "`keep` is a whole number"),
        (format!("{good}keep_within = \"30\"\n"), 2, "`keep_within`: a duration needs a unit"),
        (format!("{good}keep_within = \"1ms\"\n"), 2, "`keep_within` is 1ms, but must lie"),
        (format!("{good}service = \"\"\n"), 2, "a service has a name of 1 to 100 bytes"),
        (format!("{good}service = \"sidepath.x\"\n"), 2, "not begin with `sidepath.`"),
        (format!("{good}keeps = 3\n"), 2, "did you mean `keep`?"),
    ] {
        let text = report(&room, &with, good, &to);
        assert!(text.contains(part), "{to}: {text}");
        assert!(text.contains(&format!("--> alpha.toml:{}:", line + at)), "{to}: {text}");
    }
}

#[test]
fn own_key_of_a_peer_is_found() {
    let room = Room::new();
    let config = room.config();
    let start = config.find("public_key = \"").unwrap() + 14;
    let beta = config[start..start + 44].to_string();
    std::fs::copy(room.join("beta.key"), room.join("alpha.key")).unwrap();
    let text = report(&room, &config, &beta, &beta);
    assert!(text.contains("peer `beta` has our own public key"), "{text}");
    let text = report(&room, &config, &beta, "c2hvcnQ=");
    assert!(text.contains("`public_key`: 5 bytes where a key has 32"), "{text}");
}

#[test]
fn key_files_open_to_others_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let room = Room::new();
    let config = room.config();
    let key = room.join("alpha.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let text = report(&room, &config, "alpha.key", "alpha.key");
    assert!(text.contains("key file alpha.key has mode 0640"), "{text}");
    assert!(text.contains("hint: chmod 600 alpha.key"), "{text}");
    let text = report(&room, &config, "alpha.key", "gone.key");
    assert!(text.contains("cannot open key file gone.key: no such file"), "{text}");
    assert!(text.contains("hint: sidepath keygen --out gone.key"), "{text}");
}

#[test]
fn a_node_that_could_reach_nobody_is_refused() {
    let room = Room::new();
    room.key("a.key");
    room.write("alpha.toml", "[node]\nid = 1\nname = \"a\"\nkey_file = \"a.key\"\n");
    let done = room.run(&["config", "check", "alpha.toml"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("neither [network] nor [storage]"), "{done:?}");
}

#[test]
fn what_is_no_toml_is_shown_where_it_breaks() {
    let room = Room::new();
    let config = room.config();
    let text = report(&room, &config, "id = 1", "id = = 1");
    assert!(text.contains("--> alpha.toml:2:"), "{text}");
    room.write("alpha.toml", "");
    assert!(room.run(&["config", "check", "alpha.toml"]).stderr.contains("no [node] section"));
    let done = room.run(&["config", "check", "nowhere.toml"]);
    assert_eq!(done.code, 2);
    assert!(done.stderr.contains("cannot read the configuration: no such file"), "{done:?}");
}

#[test]
fn json_tells_line_and_column() {
    let room = Room::new();
    let config = room.config().replace("flush_bytes", "fush_bytes");
    room.write("alpha.toml", &config);
    let done = room.run(&["config", "check", "--json", "alpha.toml"]);
    assert_eq!(done.code, 2);
    let json = done.json();
    assert_eq!(json["valid"], false);
    assert_eq!(json["problems"][0]["line"], 19);
    assert_eq!(json["problems"][0]["column"], 1);
    assert_eq!(json["problems"][0]["hint"], "did you mean `flush_bytes`?");
}
