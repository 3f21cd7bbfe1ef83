"""Tables as pandas 1.5, 2.0, 2.2 and 3.1 really wrote them, read without pandas; 0.25's layout is in test_tables.py."""

import base64

import numpy as np
import pytest
from flux4d import tables

# gzip of pickle.dumps(table, protocol=4), base 85, as each version wrote
# DataFrame({"uuid": ["car-0", "car-1", None], "x": [1.5, -2.0, 3.25], "label": Categorical(["u", "v", "u"]),
#            "stationary": [True, False, True], "d": arange(3)}), and of its columns x and d, rows 0 and 2.
WRITTEN = {
    ("1.5.3", "whole"): (
        "ABzY8000000t1ay&rj4q6mGk%=%OMaDn?>Fc))`jxOp%^fe@rx6B2Hc$+R7I8oF&WoeG;sq6ZL?x$*p8Jo;yO(>K$uv|^Omr0>nn"
        "`!(<T-h6VuKK3lL)NDbsn3jVm7i_R6=!k*3u}&r3F#0(>{R~I2s9Z7{3Q&*Q=1C@*$Y@#)Ml_>CCQ48@SJOP&e_QX-eNo+OTu7RP"
        "<%JKZ8B%3M678pqgxU$M)!nQb72`Vms7hr*g`i^$O9YGZtdydPq&D=7A*d;gZA{L=w~k@W4&e)I!=i8FuXh4`MtQLu7y2s7dG{R7"
        "PV4iYvOhu)1Y19GnUB9BAw1i~lD&wEXG>7aWe6A^sOw>sU_lvH?v-g0F_Ti~(E)u&fB7`O&1ZEXe6Cx@ymIzB$zS}D+|tR{=4)7f"
        "tklx_UW@)qz+?UdgE`%NYOd2>(+jL{fskT+c+ucs{gpmhrO`f%bt^hR)?R~%N;b?z644aY^jd3o4qM;e@7xM>PW7PeYI<8X0@R(B"
        "*Lu_ThC%&Fcx^Y|<x$KIF-S;DWM7|T?0~%1|DiMAP~Jp0JdBZ>aJkD4ZXO!&><X0q0Ssntrb!%BC%W#bT*OS^_0OvCa)92k0V!F&"
        "0EsXB4Wgc9TN;fcB$|fA@q1UMK=}XYwq-Y1_k8!tfs+=u_|iX^WnuO8avIrWbA7L!O#=3kZ}Kf{I)8IHv-i8-ZdD~Qw)_z1BBdci"
        "?(|DZWs+x9;Dp+-!GiD9F!0STfhOP!nhiDj+gi2|M?ai5Nrl8|Q*J5q0&sp%VW`+9CNucD1PO<)muAT1B_ksysiDj+mPe(;H|hw~"
        "HL{n|p;7PCG|dl65?2KdHBywAOO$Y0R^i|mYx;ihD+K@m"
    ),
    ("1.5.3", "part"): (
        "ABzY8000000t0<gQEL=25Z>M1S*>C%rCLyY@ToqyPf`^sEmnlOc!KXGWOs9yrP<t)WN8m9v=2R7$Xmz%>YL7FTfEb17ACXF%zR(w"
        "o0H!6)rBZ5ztV7Ba+?-oBhsPawE%zTJ$L*=@Gs%{DICLw@3DGhz(1W0ue1|Jb7j+-Yd#Xjg1`4pjf;a%-9M)LhgTU)Rk{700)Cmb"
        "x~Yl-C0I^56uhR}x|wv<>sGmn8^b49l^IctwRNT~90m46AoxYB9YQW4i_Ty-&fyz;fsHK2FPVZ|_WjaL8hVLOhOgn`yt`lU@fHjQ"
        "gO5LP1(QV%@{8REU1NT1cl*)~;IY4*w-wUS$h&V<RfqscC{!*>$jZC&zFZ+1a&?}>x=*SZX!+znz)_T3?F1~JQHfcUDeR*h>+?F4"
        ";z-yu=N8plVp<%sJvu{@@|Evj`$5MNwS~WlCTD@>=eZ7j{i8$MM3ms;Bk*wvf?CtlG$@01N-cQfAK%0b)e@#Ekldbjn=fYw$+tIi"
        "dGW7?WF3+qgHwsx;=t0Qu7{V^!twCReH4p3hhupR{uUc5J__z5uGIL@va)SZO6~+xJQp~V=eEt$U({p3Y#svu00"
    ),
    ("2.0.3", "whole"): (
        "ABzY8000000t1ay&rj4q6mGk%=%OMaDn?>Fc))`jxOp%^fe@rx6B2Hc$+R7I8oF&WoeG;sq6ZL?x$*p8Jo;yO(>K$uv|^Omr0>nn"
        "`!(<T-h6VuKK3lL)NDbsn3jVm7i_R6=!k*3u}&r3F#0(>{R~I2s9Z7{3Q&*Q=1C@*$Y@#)Ml_>CCQ48@SJOP&e_QX-eNo+OTu7RP"
        "<%JKZ8B%3M678pqgxU$M)!nQb72`Vms7hr*g`i^$O9YGZtdydPq&D=7A*d;gZA{L=w~k@W4&e)I!=i8FuXh4`MtQLu7y2s7dG{R7"
        "PV4iYvOhu)1Y19GnUB9BAw1i~lD&wEXG>7aWe6A^sOw>sU_lvH?v-g0F_Ti~(E)u&fB7`O&1ZEXe6Cx@ymIzB$zS}D+|tR{=4)7f"
        "tklx_UW@)qz+?UdgE`%NYOd2>(+jL{fskT+c+ucs{gpmhrO`f%bt^hR)?R~%N;b?z644aY^jd3o4qM;e@7xM>PW7PeYI<8X0@R(B"
        "*Lu_ThC%&Fcx^Y|<x$KIF-S;DWM7|T?0~%1|DiMAP~Jp0JdBZ>aJkD4ZXO!&><X0q0Ssntrb!%BC%W#bT*OS^_0OvCa)92k0V!F&"
        "0EsXB4Wgc9TN;fcB$|fA@q1UMK=}XYwq-Y1_k8!tfs+=u_|iX^WnuO8avIrWbA7L!O#=3kZ}Kf{I)8IHv-i8-ZdD~Qw)_z1BBdci"
        "?(|DZWs+x9;Dp+-!GiD9F!0STfhOP!nhiDj+gi2|M?ai5Nrl8|Q*J5q0&sp%VW`+9CNucD1PO<)muAT1B_ksysiDj+mPe(;H|hw~"
        "HL{n|p;7PCG|dl65?2KdHBywAOO$Y0R^i|mYx;ihD+K@m"
    ),
    ("2.0.3", "part"): (
        "ABzY8000000t0<gO>fjN5KY1^(1IvcRoVmMz^NR_6%e3SEkdGEw-WctauV-4s^g7pN9{^fqK9r<$+r&wk)O~T%s8#s<;#(ri8C|r"
        "dEWcl`}RGF!t%=v*Cn@UF*YI{8eR+V3m>@SA47ZvFHYeEHhhoOBLn`~Y<i`gFq$iy)?D+EFc$p7Z8a_q_quN^_fKvrn5uI7s|5TK"
        "Yjsl<hf1)VYAAVCw{<h=y4S686*q=Yuq!j77;EcHTR2MWheYuAuy;tgf-E|Noj8Yc_zW9aj88HJx#at$n>2J2pA28a<wf`Zj*s8L"
        "U@+MIfh%lT<RHJ?dE5==db4{kZUG+q`*~X-9gV#ER#k-vfP_NrvV?Z|Kt7VoL_@C3lUVmjH3Kc5{s%aUZls9_SU#r~vnW$IKsnau"
        "btuKLuxZXMs<+6rIAWjZ3`xpYzJD7B9ZS>}{v?{51)BSF6Z-Pogf@vN!N<qo;}Qgorl-j$gLX<Icq88;ihTcffS3QeW!9Ao+R$n!"
        "7`l*{-a3-i!tp@;02ScQq1R5p-(^F^M<HC}N{x>!E87P3;Z88cbAd*?ux+0H1WjOYIP(Gk00"
    ),
    ("2.2.3", "whole"): (
        "ABzY8000000t1ay&rj4q6mGjM=wbvyf*6U$!~-7Oz|DgR3WOllnvi%TlW9BbG<4f$Iu$mNL=PY&bL08{_%C_$rf;TQX~ihBN#C2D"
        "_iNtwz4_#Ree79gsriCtF)asCF4*8e&=CW5dy7iCZS+fc`Wa4OMY&`&6rdiq&67+rk<qjqjA%xOOq8JRY@~T~__p4o`-)m@Tu7RP"
        "<&_VpSyE+15*?<DgxU$M)nZnSit&J$_@gS72^E5lF)k4-%Cl06Dw5jLGnSyHF}N|g1m8M^O*@1yum>x?jlbR*@LA=>a$M-UDCgaC"
        "xHzxRd&>R@K@jZz#AQDIx`gmzA8Ym^DxR%EE!QAmc%W{DRe}X&Sh`oHNyJP_oks`s9sT7q{4Sr@h46)L8B5AJ=p=vfM{-Li-(0G3"
        "`LSM0>su}QF9DDF6Ab2b^QnbSe@!p2!ev5=@$prMgRNKkWP?VBEY_{)AX$42A}ZN17fD1@P&1pY-6iZkn)>brI;Xndb~U{%8v$yr"
        "<+atcy`fNl5?<Rab%_+SV+<0~66x0`89O4c^?&Hhx0N^14H07`CtUBcgPR8iJi7vAe*lA-n`ssY)tRn)Iu|h$c>RkiydI!;YCuZX"
        "u0Z0;e}kxJ*_KA*1c|00as1wmDG>fYx^3AF);-_7ap0uIEx!5>W?5K$y_`li*<9aiXOn=v<U4#9o6g@{&+Pr~w_8<7j4eOLxkzcq"
        "kURZSQkmo#6*!@GY_Q<(YZ&-Wmp~Kn1<i&U{XH#Ph@&6Qo1{YGv?;fgc>y>-s4!G)6O$QyU4n$e=SwqW@|2MglhjaVAIqas;v;ne"
        "YKk1BbZFFjG)?oPlEhVkLyZ(A<`N~GmsL3U1s(~hIxGbM00"
    ),
    ("2.2.3", "part"): (
        "ABzY8000000t0<gO;6k~5KY2vX=zo8kXjC?ho0!6xwaKWRDh7$h(+ohS(C)Oj&Qt@?Fd#XQhQ(l$v37yvj3pBGIl`S?Uy4t6K7`L"
        "^St+^_w9QUh2>TnP$ihO7;BymHPjs4gFUdYAL46#`4!J_!}VA_(&(PgrdP^xtw5Tz1_dLo4Z24=a$FoAbl+6&p59h4S>@(e3A$z0"
        "s-`NAC1<&>3CXIhn@P$-`?{630<B>}ZJFl9SQ)F^!urg9$V9hD%|psHX3;tB#yMW#C)~(ldXg!MW!Eq5r14jA$?y$cU3UK$T>K6P"
        "gTcq2w8EA}7W1p!C*5RzY<KUa_ejU?e%@9@M-lP9kyXJ1phxlTvc&J=p?EA-JPolrPh!m_)eN*){||5!-D(qgVDZAYm_?c55$Ulu"
        "FGR^txk+;{B;OKK{Dgh*XGBuGcKy3J2w9T2_$SfiJkUIxo6zUqCbaE|dieMhU0fpfqv<K{ltDZ7BX}z|2}NxE9pKf!ZkcuE+;8MH"
        "5{zu<nci8F)!ag$enbj@wPdz4boba$!YG8#K+5rnVP)HpK43YMkaKd{rD^l@2E@Q*+Vlbd00"
    ),
    ("3.1.1", "whole"): (
        "ABzY8000000t1y*&rj4q6mECBi!6w!fE-Xf;=v8XXfz>F*bOQTn}}yJnYOc?X1i@OoeE7PY6u9)#Eawq<G<vMo4%QLWfxb2P1>1u"
        "-tX^wuOF>%M|DGAqMqQ$!>JULZOri&!+j#Z$_Jn1p<EFb>ibNJdxcEXjTvbM5hpCdVcP8D2>XPA?(}9DyS<&_9n@FELaBnnz)3H3"
        "q_}~yC<)wNNRXqHKw4Zcg)w6|2btLo#^U|AoCT4;p}t*2G>H<7w44-ENsg6Z6MRT9gBVFUL|7g}6!eyu;dw$(H)aTj0i+4urbEnp"
        "f>Lc>9?M;6S8dZa_O!xek|QVUc6A=&nv(?~4<c0`C+B2fx@A_irn>18U2fes%BxncjZ5pOc*Di);i`J9{XQUjvcvUG)RCv+medea"
        "MH$-q9U_`2la?<(oEMf)3Jn*#lt7I#hu#&nGz?rNZyS)B`B^1dQBOK07NV@5<V~c}>}QZ(S<h*xpc_X}n9SwMS4~TTPe7+k+%}FO"
        "c}FT+E6TK8J(096YTh8gO82QeJ1x$u!d#b~PG|ckT>4=fTsmj1#Uk|c=Vf)im&JM^;h3(2*~+D;Z;udaz?3C~lKkL;Qk}Nu%O-Yv"
        "#Di#50b7_8KW2f8L-?}2T>oKpv{6IM4xJ4uToMfsDvk)aSsZNuj~tM+>EM(|(LfQ|N3Yel!e4E$*A3)BQ%O2g7^OGq+zMS7$G{2z"
        "r5M=J^jI9Q$t>5(SQb^XcVpN?AJND3$p}5@GsO#GMXI|ynP$vH%sj%NN@u{B7Tr?F(pLjqtMIZTD#6+?mhZ=6S%oMSY$qDIifX1|"
        "<o>i>a0aY9L)Ph+v9?XaEGbd7tt%T2hA2qi{DXjFDqMK8?Aow5F4c7KX`oQ-T>;P92%f70Z`NO?#9X<~kHvXD%L4Bp#108lj(HGA"
        "nC0I8Ku?bf)FA~!G<I?1lOdYIDNGEG8HfHB7EI9uW}?~<*qB<AXwp~+x&&sSqIFmQD_|n`3CEh}doVIE=kP~3R1>KiVqb6X;4qB$"
        "Q{-g{j3wwRROBL0)68l90$EIA=Z*#d00"
    ),
    ("3.1.1", "part"): (
        "ABzY8000000t0<h!EVz)5OrLqB}r+EkRS(y5T|hQ86+eqi9irxp>mE^YkTdry0NYGTB#2eaA;_yy><8%zO6TyT|1C+z*g+Zdgjf{"
        "doy3XA3t{-d+FVh<}s~64`x)+w~{UyT*I?(a1Imgk!31DKW=^esF2Lha>Zm$MddGPPE#f^cK?kiqSKG<e+<_Tx(Fh&u=*PU`jFIl"
        "nMJ39k<i3g=e%B)jZZB6vKA_%Qql%tiDXfcS4!5AGM;_w33?B~t;;pcoeP-uLii3RFq!x8cGtiUbw5^3X<E^4@*J)%+wVKN_Y#62"
        "`0xua`<Ocl!mH^~OUKQt_C0(Jc&zV)b%y2SSa`n@S;TBYlf}TzUGwB4e!%aUGWh-5MU1tZZKdXq{*%~o-0p1>^QQ)4JIfjtsK@xW"
        "5HUMrl^@cIfgX~at;l<GhDCBm_cyi`GDdMh-|gZpdDzs^v6RK?vyxe!9(ROx(ho>UNvFf8Y^ZVcQBBYXs7j@<0<zIy!e{!x&`pv;"
        "5-KvBCnSDfP?<7PS$Mdxy&!uIb`oI3plnE3CyAXH{zMPLMzIa#biCoE_b)#N$ozP~KTX}U_|E}bK%lIpcS$Qh@-S-Kn{CEnuWJV0"
        "eYt57*KI^ZBhIk*I@Dfn)*z_O7ybf4h9@*n*%qTb4R9nBl?n$!d&ox#bI%wI4cA683+xfhjO%3-NbGtcw@ap|m1KdFMU}!OIyW^W"
        "f~MAdNQEd?6^ZK-=Z-2y1PvK(&}CJJ{%_D|8d<>u000"
    ),
}


@pytest.mark.parametrize("version", ["1.5.3", "2.0.3", "2.2.3", "3.1.1"])
def test_what_pandas_wrote(tmp_path, version):
    path = tmp_path / "00.pkl.gz"
    path.write_bytes(base64.b85decode(WRITTEN[version, "whole"]))
    found = tables.read(path, ("uuid", "label"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "uuid": ["car-0", "car-1", None],
        "x": [1.5, -2.0, 3.25],
        "label": ["u", "v", "u"],
        "stationary": [True, False, True],
        "d": [0, 1, 2],
    }
    path.write_bytes(base64.b85decode(WRITTEN[version, "part"]))
    found = tables.read(path, ("x",))
    np.testing.assert_array_equal(found["x"], [1.5, 3.25])
    np.testing.assert_array_equal(found["d"], [0, 2])
