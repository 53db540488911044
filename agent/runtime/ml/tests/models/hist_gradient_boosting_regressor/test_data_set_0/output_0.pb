J`H©1CÖ0CcBCÖ0CA5Cß¦
CžÛB€--CÚ–åB06$CÙÑ.CîÞB{è1CÖ0CÖ0CïÛþBKLöBuèBW("CJ¼?C2ãôB¤,KCnÏ%C¼>C