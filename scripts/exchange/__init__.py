"""What comes from other projects and goes to them: poisons in, DDPMs in, image sets out."""
