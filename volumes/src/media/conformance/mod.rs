//! What every medium must do; run it on any [`BlockDevice`] whose content may be destroyed.
//!
//! [`run`] is for media of blocks, [`run_volume`] for all.
//!
//! ```
//! volumes::media::conformance::run(&volumes::media::MemoryDevice::new(1 << 20)).unwrap();
//! ```

mod volume;

pub use volume::run_volume;

use super::BlockDevice;
use crate::buffer::Pool;
use crate::event::IoFaultKind;

const UNIT: usize = 4096;

/// `Err` says what the medium got wrong.
pub fn run(device: &dyn BlockDevice) -> Result<(), String> {
    what_is_written_is_read(device)?;
    the_last_block_exists_and_nothing_behind_it(device)?;
    the_end_is_an_end(device)?;
    one_mebibyte_in_one_call(device)?;
    neighbours_stay(device)?;
    the_smallest_unit_is_enough(device)?;
    every_block_has_a_place_of_its_own(device)?;
    two_threads_do_not_mix(device)?;
    flush_keeps_what_was_written(device)
}

/// Deterministic noise, so that stale or shifted bytes show.
fn noise(seed: u64, out: &mut [u8]) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in out.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
}

fn expect_noise(
    device: &dyn BlockDevice,
    offset: u64,
    len: usize,
    seed: u64,
) -> Result<(), String> {
    let pool = Pool::new();
    let (mut want, mut got) = (pool.take_len(len), pool.take_len(len));
    noise(seed, want.as_mut());
    got.as_mut().fill(0x77);
    device.read_at(offset, got.as_mut()).map_err(|e| format!("read at {offset}: {e}"))?;
    if want.as_ref() == got.as_ref() {
        return Ok(());
    }
    Err(format!("the {len} bytes at {offset} are not what was written"))
}

fn write_noise(device: &dyn BlockDevice, offset: u64, len: usize, seed: u64) -> Result<(), String> {
    let mut buf = Pool::new().take_len(len);
    noise(seed, buf.as_mut());
    device.write_at(offset, buf.as_ref()).map_err(|e| format!("write at {offset}: {e}"))
}

fn write(device: &dyn BlockDevice, offset: u64, len: usize, fill: u8) -> Result<(), String> {
    let mut buf = Pool::new().take_len(len);
    buf.as_mut().fill(fill);
    device.write_at(offset, buf.as_ref()).map_err(|e| format!("write at {offset}: {e}"))
}

fn expect(device: &dyn BlockDevice, offset: u64, len: usize, fill: u8) -> Result<(), String> {
    let mut buf = Pool::new().take_len(len);
    buf.as_mut().fill(!fill);
    device.read_at(offset, buf.as_mut()).map_err(|e| format!("read at {offset}: {e}"))?;
    match buf.as_ref().iter().position(|&b| b != fill) {
        None => Ok(()),
        Some(at) => Err(format!("byte {} is not what was written", offset + at as u64)),
    }
}

fn what_is_written_is_read(device: &dyn BlockDevice) -> Result<(), String> {
    for fill in [0x5a, 0xa5] {
        write(device, 0, UNIT, fill)?;
        expect(device, 0, UNIT, fill)?;
    }
    device.flush().map_err(|e| format!("flush: {e}"))?;
    expect(device, 0, UNIT, 0xa5)
}

fn the_last_block_exists_and_nothing_behind_it(device: &dyn BlockDevice) -> Result<(), String> {
    let end = device.size() / UNIT as u64 * UNIT as u64;
    write(device, end - UNIT as u64, UNIT, 7)?;
    expect(device, end - UNIT as u64, UNIT, 7)?;
    let mut buf = Pool::new().take_len(UNIT);
    match device.read_at(device.size().next_multiple_of(UNIT as u64), buf.as_mut()) {
        Err(e) if e.kind == IoFaultKind::ShortRead => Ok(()),
        Err(e) => Err(format!("a read behind the end must be a short read, not {e}")),
        Ok(()) => Err("a read behind the end succeeded".into()),
    }
}

fn one_mebibyte_in_one_call(device: &dyn BlockDevice) -> Result<(), String> {
    let len = crate::format::RECORD_BYTES_MAX.min(crate::format::bytes::to_usize(device.size()));
    write(device, 0, len, 9)?;
    expect(device, 0, len, 9)
}

fn neighbours_stay(device: &dyn BlockDevice) -> Result<(), String> {
    write(device, 0, 3 * UNIT, 1)?;
    write(device, UNIT as u64, UNIT, 2)?;
    expect(device, 0, UNIT, 1)?;
    expect(device, UNIT as u64, UNIT, 2)?;
    expect(device, 2 * UNIT as u64, UNIT, 1)
}

/// A read across the end is no read of what is before it.
fn the_end_is_an_end(device: &dyn BlockDevice) -> Result<(), String> {
    let size = device.size();
    let end = size / UNIT as u64 * UNIT as u64;
    if end == size {
        let mut buf = Pool::new().take_len(2 * UNIT);
        if device.read_at(end - UNIT as u64, buf.as_mut()).is_ok() {
            return Err("a read across the end succeeded".into());
        }
    }
    if device.size() == size { Ok(()) } else { Err("the size changed".into()) }
}

/// One logical block can be written and read alone.
fn the_smallest_unit_is_enough(device: &dyn BlockDevice) -> Result<(), String> {
    let unit = device.logical_block() as usize;
    if !unit.is_power_of_two() || unit < 512 {
        return Err(format!("a logical block of {unit} bytes"));
    }
    write(device, 0, 8 * unit, 3)?;
    write(device, 5 * unit as u64, unit, 4)?;
    expect(device, 0, 5 * unit, 3)?;
    expect(device, 5 * unit as u64, unit, 4)?;
    expect(device, 6 * unit as u64, 2 * unit, 3)
}

/// No two offsets lead to the same bytes (64 of them, spread over the medium).
fn every_block_has_a_place_of_its_own(device: &dyn BlockDevice) -> Result<(), String> {
    let blocks = device.size() / UNIT as u64;
    let places: Vec<u64> = (0..64.min(blocks)).map(|i| i * blocks / 64.min(blocks)).collect();
    for &block in &places {
        write_noise(device, block * UNIT as u64, UNIT, block)?;
    }
    for &block in places.iter().rev() {
        expect_noise(device, block * UNIT as u64, UNIT, block)?;
    }
    Ok(())
}

/// Flusher, reader and keeper use one medium at a time; their operations do not touch each other.
fn two_threads_do_not_mix(device: &dyn BlockDevice) -> Result<(), String> {
    let half = device.size() / 2 / UNIT as u64 * UNIT as u64;
    let len = (64 << 10).min(crate::format::bytes::to_usize(half));
    let work = |base: u64| {
        for round in 0..50 {
            write_noise(device, base, len, base + round)?;
            expect_noise(device, base, len, base + round)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(move || work(half));
        work(0)?;
        other.join().map_err(|_| "a thread panicked".to_owned())?
    })
}

fn flush_keeps_what_was_written(device: &dyn BlockDevice) -> Result<(), String> {
    let len = 4 * UNIT;
    write_noise(device, 0, len, 11)?;
    write_noise(device, UNIT as u64, UNIT, 12)?;
    for _ in 0..2 {
        device.flush().map_err(|e| format!("flush: {e}"))?;
        expect_noise(device, UNIT as u64, UNIT, 12)?;
    }
    if device.still_there() { Ok(()) } else { Err("it says that it is not there".into()) }
}
