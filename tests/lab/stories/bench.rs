//! The lab itself, without sidepath: a cut really cuts, the meter really sees it, and the ways to
//! break the disk break it. A lab that cannot show a loss would prove nothing elsewhere.

use std::fs::File;
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::Duration;

use crate::disk::Disk;
use crate::transfer::Transfer;
use crate::{Lab, Medium, Meter, Needs, Story, run, wait_for};

pub(crate) fn stories() -> Vec<Story> {
    let story = |name, needs, tell| Story {
        name,
        needs,
        tools: &[],
        guard: Duration::from_secs(120),
        tell,
    };
    vec![
        story("cuts_are_seen", Needs::Anyone, cuts_are_seen),
        story("bytes_are_compared", Needs::Anyone, bytes_are_compared),
        story("disk_breaks", Needs::Root, disk_breaks),
    ]
}

/// Two machines whose "virtual interface" is the cable itself.
fn bare() -> Lab {
    let lab = Lab::bare(2);
    for node in &lab.nodes {
        node.sh(&format!("ip addr add {}/24 dev eth0", node.overlay));
    }
    lab
}

fn cuts_are_seen() {
    let lab = bare();
    let mut meter = Meter::start(&lab, 1, 2, 1000);
    let pause = Duration::from_millis(300);
    let mut cut = |name: &str, cut: &dyn Fn(&Lab), heal: &dyn Fn(&Lab)| {
        sleep(pause);
        let from = meter.mark(name);
        cut(&lab);
        sleep(pause);
        heal(&lab);
        let to = meter.mark("heal");
        sleep(pause);
        (from, to)
    };
    let hole = cut("black hole", &Lab::black_hole, &Lab::black_hole_heal);
    let deaf = cut("deaf", &|lab| lab.deafen(2), &|lab| lab.undeafen(2));
    let cable = cut("cable", &|lab| lab.pull_cable(1), &|lab| lab.plug_cable(1));
    let [there, back] = meter.finish(pause);

    let (lost_there, lost_back) = (there.lost().len(), back.lost().len());
    println!("  lost {lost_there} and {lost_back} of {}", there.sent.len());
    println!("  quiet {:.1} ms", there.silence_ms(hole.0 - 200_000_000, hole.0));
    for (name, (from, to)) in [("hole", hole), ("deaf", deaf), ("cable", cable)] {
        println!(
            "  {name}: silence {:.1} and {:.1} ms",
            there.silence_ms(from, to),
            back.silence_ms(from, to)
        );
        assert!(there.silence_ms(from, to) >= 250.0, "a cut silences");
        assert_eq!(back.silence_ms(from, to) >= 250.0, name != "deaf", "one direction only");
    }
    assert!(lost_there >= 700, "three cuts lose");
    assert!((350..700).contains(&lost_back), "two cuts lose");
    assert!(there.duplicated().is_empty() && there.reordered().is_empty());
    let flaws = there.flaws();
    assert!(flaws.iter().any(|flaw| flaw.starts_with("lost")), "a loss is a flaw: {flaws:?}");
}

fn bytes_are_compared() {
    let lab = bare();
    let mut transfer = Transfer::start(&lab, 1, 2, 32 << 20, 0);
    transfer.await_bytes(16 << 20, Duration::from_secs(10));
    let took = transfer.assert_whole(Duration::from_secs(10));
    println!("  32 MiB in {took:?}");
}

fn disk_breaks() {
    let lab = Lab::bare(1);
    for medium in [Medium::Array, Medium::FileOnArray] {
        let dir = lab.dir.join(format!("{medium:?}"));
        std::fs::create_dir(&dir).expect("a folder");
        let disk = Disk::new(medium, &dir, &[]);
        let path = disk.path.display().to_string();
        if medium == Medium::FileOnArray {
            crate::sh(&format!("dd if=/dev/zero of={path} bs=1M count=4 oflag=direct status=none"));
        }
        let io = |line: &str| {
            let mut command = std::process::Command::new("sh");
            run(command.args(["-c", line]), Duration::from_secs(5)).is_ok_and(|done| done.ok())
        };
        let write = format!("dd if=/dev/zero of={path} bs=4096 count=1 oflag=direct conv=notrunc");
        let read = format!("dd if={path} of=/dev/null bs=4096 count=1 iflag=direct");
        assert!(io(&write) && io(&read), "a whole disk works");

        disk.fail();
        assert!(!io(&write) && !io(&read), "EIO for reads and writes");
        disk.unfail();
        assert!(io(&write) && io(&read), "and back");

        disk.freeze();
        let stuck = std::process::Command::new("sh").args(["-c", &write]).spawn();
        let mut stuck = stuck.expect("a shell");
        sleep(Duration::from_millis(300));
        assert!(matches!(stuck.try_wait(), Ok(None)), "a frozen write hangs");
        disk.thaw();
        wait_for("the frozen write", Duration::from_secs(5), || {
            stuck.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| "still hangs".to_owned())
        });

        if medium == Medium::Array {
            disk.read_only();
            let refused = File::options().write(true).open(&disk.path).map_err(|e| e.kind());
            assert!(refused.is_err_and(|kind| kind == ErrorKind::PermissionDenied) || !io(&write));
            disk.read_write();
            disk.vanish();
            assert_eq!(crate::sh(&format!("blockdev --getsize64 {path}")).trim(), "4096");
            disk.reappear();
            assert!(io(&write) && io(&read), "and back");
        }
    }
}
