J`IC‘QC8ZC3(CÙDCÙâC‚By˜TCl³çBðC2ó%CF6±BþJCÇoC”íC¦ÒCj´BÅ$ŽB-'Cè9Ceq§B•‚_CqäC
BOC