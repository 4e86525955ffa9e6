"""What a package from elsewhere adds to spikingjelly_signgd."""
