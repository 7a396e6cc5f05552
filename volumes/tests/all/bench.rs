//! The bench measures on bytes of its own, leaves nothing behind, and refuses a volume in use.

use crate::common::loops::{Loop, Scratch};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use volumes::bench::{BenchError, BenchOptions, BenchReport, bench};
use volumes::{AttachOptions, InitOptions, attach, init};

fn short() -> BenchOptions {
    BenchOptions { duration: Duration::from_millis(300), single_host: true }
}

fn is_whole(report: &BenchReport) {
    for latency in [report.record_latency, report.raw_latency] {
        assert!(latency.samples > 0 && latency.p50_us <= latency.p99_us, "{report:?}");
    }
    assert!(report.record_mb_s > 0.0 && report.raw_mb_s > 0.0, "{report:?}");
    let ratio = report.record_mb_s / report.raw_mb_s;
    assert!((report.throughput_ratio - ratio).abs() < 1e-6, "{report:?}");
}

#[test]
fn beside_a_file_it_measures_and_leaves_nothing() {
    let dir = Scratch::new("bench-file");
    let path = dir.join("not-there");
    let report = bench(&path, &short()).unwrap();
    is_whole(&report);
    assert!(report.path.starts_with(&path.display().to_string()), "{}", report.path);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    let e = bench(dir.join("no/folder/there"), &short()).unwrap_err();
    assert!(matches!(e, BenchError::Init(_)), "{e}");
}

#[test]
fn on_a_device_it_uses_the_idle_volume_and_no_other() {
    let dir = Scratch::new("bench-loop");
    let file = dir.join("backing");
    std::fs::write(&file, vec![0; 24 << 20]).unwrap();
    let Some(device) = Loop::new(&file, &[]) else {
        println!("SKIPPED: bench on a device: needs root, losetup and a free device");
        return;
    };
    let path = Path::new(&device.0);
    let e = bench(path, &short()).unwrap_err();
    assert!(matches!(e, BenchError::Attach(_)) && e.is_input_error(), "no volume: {e}");
    let o = InitOptions {
        name: "lun".into(),
        nodes: vec![1, 2],
        single_host: true,
        ..InitOptions::default()
    };
    init(path, &o, |_, _| {}).unwrap();
    let began = Instant::now();
    let clock = Arc::new(move || u64::try_from(began.elapsed().as_micros()).unwrap());
    let options = AttachOptions { single_host: true, ..AttachOptions::new(path, 2) };
    let alive = attach(options, clock, Arc::new(|_| {})).unwrap();
    while alive.epoch() == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "never attached");
        std::thread::sleep(Duration::from_millis(5));
    }
    let e = bench(path, &short()).unwrap_err();
    assert!(matches!(e, BenchError::Live { node: 2, .. }) && e.is_input_error(), "{e}");
    assert!(alive.shutdown(Duration::from_secs(10)));
    is_whole(&bench(path, &short()).unwrap());
}
