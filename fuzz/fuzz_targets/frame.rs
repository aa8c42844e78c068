#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| l2lb_fuzz::targets::frame::run(data));
