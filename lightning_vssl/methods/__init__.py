"""The papers, one file each: LightningModules that pretrain a backbone."""
