//! What every medium must do; run it on any [`BlockDevice`] whose content may be destroyed.
//!
//! ```
//! volumes::media::conformance::run(&volumes::media::MemoryDevice::new(1 << 20)).unwrap();
//! ```

use super::BlockDevice;
use crate::buffer::Pool;
use crate::event::IoFaultKind;

const UNIT: usize = 4096;

/// `Err` says what the medium got wrong.
pub fn run(device: &dyn BlockDevice) -> Result<(), String> {
    what_is_written_is_read(device)?;
    the_last_block_exists_and_nothing_behind_it(device)?;
    one_mebibyte_in_one_call(device)?;
    neighbours_stay(device)
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
