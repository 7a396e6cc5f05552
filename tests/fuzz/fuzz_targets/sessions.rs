#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sidepath_fuzz::run("sessions", data));
